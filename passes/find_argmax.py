"""Lets the model take the argmax of its logits and go on with it: it then can run several steps without the host in between.

Before:  return (logits, maxima)
After:   argmax = cupola.argmax(logits, maxima, tokens, positions, slots.0, context_lens, block_tables.0, block_size=16)
         return (logits, maxima, argmax)                # i32 [8, r]

Further state groups' slots and block tables come in one more argument, a tuple. The host's part of a step is small, but it runs out of
memory's reach: the weights have gone through every cache.
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from cupola.passes.rewrite import pass_of, results_of, with_result
from cupola.runtime.artifact.state import KVSpec
from cupola.targets.ops import Argmax

_CHANGED = ("tokens", "positions", "slots.0", "context_lens", "block_tables.0")


def find_argmax(kv: KVSpec) -> tvm.transform.Pass:
    """The pass, for functions whose result are logits and their maxima; those without K/V pages stay as they are."""
    return pass_of(
        "find_argmax", lambda mod: IRModule({var: _with_tokens(func, kv) for var, func in mod.functions_items()}, attrs=mod.attrs)
    )


def _with_tokens(func: relax.Function, kv: KVSpec) -> relax.Function:
    inputs = {param.name: param for param in func.params}
    if not inputs.keys() >= set(_CHANGED):
        return func
    results = results_of(func)
    tokens, positions, slots, context_lens, block_tables = (inputs[name] for name in _CHANGED)
    further = [inputs[f"{name}.{group}"] for group in range(1, len(kv.paged)) for name in ("slots", "block_tables")]
    given = (results["logits"], results["maxima"], tokens, positions, slots, context_lens, block_tables, kv.block_size)
    return with_result(func, "argmax", Argmax(*given, tuple(further)).call())
