"""Recognizes the tanh approximation of GELU (Hendrycks and Gimpel, 2016) where a model spells it out.

Before:  lv = R.multiply(R.add(x, R.multiply(R.power(x, 3.0), 0.044715)), sqrt(2 / pi))
         lv1 = R.multiply(R.multiply(x, 0.5), R.add(R.tanh(lv), 1.0))
After:   lv1 = R.nn.gelu_tanh(x)
"""

from __future__ import annotations

import math

import tvm
from tvm import relax

from cupola.passes.rewrite import Scope, constant_of, pass_of, rewrite_calls


def fuse_gelu() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_gelu", lambda mod: rewrite_calls(mod, {"multiply": _rule}))


def _rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
    for half, gate in (call.args, reversed(call.args)):
        x, total = _scaled(half, 0.5, scope), scope.call(gate, "add")
        tanh = _plus_one(total, scope)
        if x is not None and tanh is not None and _is_inner(tanh.args[0], x, scope):
            return relax.op.nn.gelu_tanh(x)
    return None


def _scaled(expr: relax.Expr, factor: float, scope: Scope) -> relax.Expr | None:
    """x, if `expr` is x times the constant `factor`."""
    product = scope.call(expr, "multiply")
    for x, constant in (product.args, reversed(product.args)) if product is not None else ():
        value = constant_of(constant)
        if value is not None and math.isclose(value, factor, rel_tol=1e-6):
            return x
    return None


def _plus_one(total: relax.Call | None, scope: Scope) -> relax.Call | None:
    """tanh(y), if `total` is tanh(y) + 1."""
    for tanh, one in (total.args, reversed(total.args)) if total is not None else ():
        if constant_of(one) == 1.0 and scope.call(tanh, "tanh") is not None:
            return scope.call(tanh, "tanh")
    return None


def _is_inner(expr: relax.Expr, x: relax.Expr, scope: Scope) -> bool:
    """True if `expr` is sqrt(2 / pi) (x + 0.044715 x^3)."""
    total = _scaled(expr, math.sqrt(2 / math.pi), scope)
    add = scope.call(total, "add") if total is not None else None
    for linear, cubic in (add.args, reversed(add.args)) if add is not None else ():
        cube = _scaled(cubic, 0.044715, scope)
        power = scope.call(cube, "power") if cube is not None else None
        if linear.same_as(x) and power is not None and power.args[0].same_as(x) and constant_of(power.args[1]) == 3.0:
            return True
    return False
