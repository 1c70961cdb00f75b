"""Stores the weights of linear layers and embeddings in 16 bits; kernels widen them again as they read.

Before:  lv = cupola.linear(x, weight)                         # weight float32
After:   lv1 = R.astype(weight, "bfloat16");  lv = cupola.linear(x, lv1)

Norms and biases stay in float32: they are small, and their errors are not.
"""

from __future__ import annotations

import dataclasses

import tvm
from tvm import relax

from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls
from cupola.targets import ops


def store_weights(dtype: str) -> tvm.transform.Pass:
    """The pass, for "float16", "bfloat16" or "float32" (nothing to do)."""

    def linear(call: relax.Call, scope: Scope) -> relax.Expr | None:
        op = ops.Linear.match(call) or ops.GatedLinear.match(call)
        assert op is not None
        return dataclasses.replace(op, weight=scope.emit(relax.op.astype(op.weight, dtype))).emit(call.ty)

    def take(call: relax.Call, scope: Scope) -> relax.Expr | None:
        table, tokens = call.args
        is_rows = len(table.ty.shape) == 2 and len(tokens.ty.shape) == 1 and call.attrs.axis is not None and int(call.attrs.axis) == 0
        if not is_rows or table.ty.dtype != "float32":
            return None
        if not all(isinstance(size, tvm.tirx.IntImm) for size in table.ty.shape):
            return None
        rows = relax.op.take(scope.emit(relax.op.astype(table, dtype)), tokens, axis=0, mode=call.attrs.mode)
        return relax.op.astype(scope.emit(rows), "float32")

    rules: dict[str, Rule] = {"cupola.linear": linear, "cupola.gated_linear": linear, "take": take}
    return pass_of("store_weights", lambda mod: mod if dtype == "float32" else rewrite_calls(mod, rules))
