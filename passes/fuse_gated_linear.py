"""Joins gate and up projections and the product of their results (SwiGLU and its relatives; Shazeer, 2020) into one call.

Before:  lv = cupola.linear(x, gate);  lv1 = cupola.linear(x, up)
         lv2 = R.multiply(R.nn.silu(lv), lv1)
After:   lv2 = cupola.gated_linear(x, R.concat((gate, up), axis=0), activation="silu")

A checkpoint that stores both as one weight (Phi 3) is recognized by its two halves, and so are the experts of a mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import tvm
from tvm import relax

from cupola.passes.fuse_epilogue import ACTIVATION_OF
from cupola.passes.rewrite import Scope, name_of, pass_of, rewrite_calls, shape_of
from cupola.targets import ops

KindOf: TypeAlias = Callable[[relax.Expr], str]  # weights of different kinds are not stored as one


def fuse_gated_linear(kind_of: KindOf = lambda weight: "") -> tvm.transform.Pass:
    """The pass. Two weights are joined only if they are of one kind."""
    return pass_of("fuse_gated_linear", lambda mod: rewrite_calls(mod, {"multiply": partial(_rule, kind_of)}))


def _rule(kind_of: KindOf, call: relax.Call, scope: Scope) -> relax.Expr | None:
    if not (scope.used_once(0) and scope.used_once(1)):
        return None
    for gate, up in (call.args, reversed(call.args)):
        activated = scope.value(gate)
        activation = ACTIVATION_OF.get(name_of(activated)) if isinstance(activated, relax.Call) else None
        if activation is None:
            continue
        found = _separate(activated.args[0], up, kind_of, scope) or _halves(activated.args[0], up, scope)
        if found is not None:
            return ops.GatedLinear(*found, activation).emit(call.ty)
        experts = ops.ExpertLinear.match(_split_in_halves(activated.args[0], up, scope))
        if experts is not None:
            return ops.GatedExpertLinear(experts.x, experts.index, experts.weight, experts.bias, experts.num_experts, activation).emit(
                call.ty
            )
    return None


def _separate(gate: relax.Expr, up: relax.Expr, kind_of: KindOf, scope: Scope) -> tuple[relax.Expr, relax.Expr, relax.Expr | None] | None:
    left, right = ops.Linear.match(scope.value(gate)), ops.Linear.match(scope.value(up))
    if left is None or right is None or not (is_plain(left) and is_plain(right)) or not left.x.same_as(right.x):
        return None
    if kind_of(left.weight) != kind_of(right.weight):
        return None
    if shape_of(left.weight) != shape_of(right.weight) or (left.bias is None) != (right.bias is None):
        return None
    weight = scope.emit(relax.op.concat((left.weight, right.weight), axis=0))
    bias = scope.emit(relax.op.concat((left.bias, right.bias), axis=0)) if left.bias is not None else None
    return left.x, weight, bias


def _halves(gate: relax.Expr, up: relax.Expr, scope: Scope) -> tuple[relax.Expr, relax.Expr, relax.Expr | None] | None:
    linear = ops.Linear.match(_split_in_halves(gate, up, scope))
    return (linear.x, linear.weight, linear.bias) if linear is not None and is_plain(linear) else None


def _split_in_halves(gate: relax.Expr, up: relax.Expr, scope: Scope) -> relax.Expr | None:
    """The value whose last axis was split into `gate` and `up`."""
    first, second = scope.value(gate), scope.value(up)
    if not (isinstance(first, relax.TupleGetItem) and isinstance(second, relax.TupleGetItem)):
        return None
    split = scope.call(first.tuple_value, "split")
    if split is None or not first.tuple_value.same_as(second.tuple_value) or (first.index, second.index) != (0, 1):
        return None
    width = shape_of(gate)[-1]
    halved = shape_of(split.args[0])[-1] == 2 * width and shape_of(up)[-1] == width
    return scope.value(split.args[0]) if halved else None


def is_plain(linear: ops.Linear) -> bool:
    """True if nothing but a bias follows the product."""
    return linear.residual is None and not linear.activation
