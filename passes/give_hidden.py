"""Gives the hidden state of each row beside its logits: the last norm's result, which the vocabulary projection reads.

Before:  lv = R.nn.rms_norm(h, norm, axes=[-1])       # f32 [r, 576]
         lv1 = cupola.linear(lv, vocabulary)          # f32 [r, 49152]
         return lv1
After:   lv = R.nn.rms_norm(h, norm, axes=[-1])
         lv1 = cupola.linear(lv, vocabulary)
         return (lv1, lv)

One of the `extra_passes` of a compile: `cupola.compile(source, extra_passes=[give_hidden()])`. The norm then is a call of its own.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from cupola.passes.rewrite import pass_of, with_result
from cupola.runtime.errors import UnsupportedError
from cupola.targets.ops import Linear


def give_hidden() -> tvm.transform.Pass:
    """The pass, for functions that end in a vocabulary projection."""
    return pass_of("give_hidden", lambda mod: IRModule({var: _with_hidden(func) for var, func in mod.functions_items()}, attrs=mod.attrs))


def _with_hidden(func: relax.Function) -> relax.Function:
    """The vocabulary projection is the last linear layer.

    Raises:
        UnsupportedError: if there is none.
    """
    values = (binding.value for block in reversed(func.body.blocks) for binding in reversed(block.bindings))
    projection = next((op for value in values if (op := Linear.match(value)) is not None), None)
    if projection is None:
        raise UnsupportedError("has no linear layer, whose input would be its hidden state", field="give_hidden")
    return with_result(func, "hidden", projection.x)
