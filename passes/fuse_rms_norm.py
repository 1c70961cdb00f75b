"""Recognizes RMSNorm (Zhang and Sennrich, 2019) over the last axis.

Before:  lv = R.power(x, 2.0);  lv1 = R.mean(lv, axis=[-1], keepdims=True)
         lv2 = R.rsqrt(R.add(lv1, eps));  lv3 = R.multiply(x, lv2);  lv4 = R.multiply(weight, lv3)
After:   lv4 = R.nn.rms_norm(x, weight, axes=[-1], epsilon=eps)

`weight` may be an expression, such as Gemma's `1 + w`.
"""

from __future__ import annotations

import tvm
from tvm import relax

from cupola.passes.rewrite import Scope, constant_of, pass_of, rewrite_calls, shape_of


def fuse_rms_norm() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_rms_norm", lambda mod: rewrite_calls(mod, {"multiply": _rule}))


def _rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
    for weight, normalized in (call.args, reversed(call.args)):
        found = _normalized(normalized, scope)
        if found is not None and shape_of(weight) == shape_of(found[0])[-1:]:
            return relax.op.nn.rms_norm(found[0], weight, axes=[-1], epsilon=found[1])
    return None


def _normalized(expr: relax.Expr, scope: Scope) -> tuple[relax.Expr, float] | None:
    """x and epsilon, if `expr` is x · rsqrt(mean(x²) + epsilon)."""
    product = scope.call(expr, "multiply")
    for x, factor in (product.args, reversed(product.args)) if product is not None else ():
        epsilon = _epsilon(factor, x, scope)
        if epsilon is not None:
            return x, epsilon
    return None


def _epsilon(factor: relax.Expr, x: relax.Expr, scope: Scope) -> float | None:
    root = scope.call(factor, "rsqrt")
    total = scope.call(root.args[0], "add") if root is not None else None
    for mean_square, epsilon in (total.args, reversed(total.args)) if total is not None else ():
        if constant_of(epsilon) is not None and is_mean_square(mean_square, x, scope):
            return constant_of(epsilon)
    return None


def is_mean_square(expr: relax.Expr, x: relax.Expr, scope: Scope) -> bool:
    """True if `expr` is the mean of x² over the last axis, which it keeps."""
    mean = scope.call(expr, "mean")
    if mean is None or not is_over_last_axis(mean):
        return False
    power, product = scope.call(mean.args[0], "power"), scope.call(mean.args[0], "multiply")
    if power is not None:
        return bool(power.args[0].same_as(x)) and constant_of(power.args[1]) == 2.0
    return product is not None and all(arg.same_as(x) for arg in product.args)


def is_over_last_axis(mean: relax.Call) -> bool:
    """True if a mean is taken over the last axis alone, and keeps it."""
    rank, axes = len(mean.args[0].ty.shape), mean.attrs.axis
    return bool(mean.attrs.keepdims) and axes is not None and [int(axis) % rank for axis in axes] == [rank - 1]
