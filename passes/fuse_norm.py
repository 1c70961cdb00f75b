"""Moves an RMSNorm into the linear layer that alone reads it: the kernel normalizes rows as it takes them in.

Before:  lv = R.nn.rms_norm(x, norm, axes=[-1], epsilon=eps);  lv1 = cupola.linear(lv, weight)
After:   lv1 = cupola.linear(x, weight, norm=norm, epsilon=eps)
"""

from __future__ import annotations

import dataclasses

import tvm
from tvm import relax

from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of
from cupola.targets import ops


def fuse_norm() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_norm", lambda mod: rewrite_calls(mod, {"cupola.linear": _rule, "cupola.gated_linear": _rule}))


def _rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
    op = ops.Linear.match(call) or ops.GatedLinear.match(call)
    assert op is not None and scope.original is not None
    before = ops.Linear.match(scope.original) or ops.GatedLinear.match(scope.original)
    norm = scope.call(op.x, "nn.rms_norm")
    if norm is None or before is None or op.norm is not None or scope.num_uses[before.x] != 1:
        return None
    x, weight = norm.args
    axes = [int(axis) % len(shape_of(x)) for axis in norm.attrs.axes]
    if axes != [1] or weight.ty.dtype != "float32" or x.ty.dtype != "float32":
        return None
    return dataclasses.replace(op, x=x, norm=weight, epsilon=float(norm.attrs.epsilon)).emit(call.ty)
