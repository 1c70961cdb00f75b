"""Gives the largest logit of each block of a row beside the logits: who chooses a token then need not read all of them.

Before:  lv = cupola.linear(x, weight)                # f32 [r, 49152]
         return lv
After:   lv = cupola.linear(x, weight)
         lv1 = cupola.block_maxima(lv)                # f32 [r, 768]
         return (lv, lv1)
"""

from __future__ import annotations

import tvm
from tvm import IRModule, relax

from cupola.passes.rewrite import pass_of, results_of, with_result
from cupola.targets.ops import BlockMaxima


def find_maxima() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("find_maxima", lambda mod: IRModule({var: _with_maxima(func) for var, func in mod.functions_items()}, attrs=mod.attrs))


def _with_maxima(func: relax.Function) -> relax.Function:
    return with_result(func, "maxima", BlockMaxima(results_of(func)["logits"]).call())
