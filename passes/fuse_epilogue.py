"""Moves the activation and the residual addition that follow a linear layer into it.

Before:  lv = R.nn.relu(cupola.linear(x, up))
         lv1 = R.add(residual, cupola.linear(lv, down))
After:   lv = cupola.linear(x, up, activation="relu")
         lv1 = cupola.linear(lv, down, residual=residual)
"""

from __future__ import annotations

import dataclasses

import tvm
import tvm_ffi
from tvm import relax

from cupola.passes.rewrite import Rule, Scope, name_of, pass_of, rewrite_calls
from cupola.targets import ops

ACTIVATION_OF = {"nn.silu": "silu", "nn.gelu": "gelu", "nn.gelu_tanh": "gelu_tanh", "nn.relu": "relu"}


def fuse_epilogue() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_epilogue", lambda mod: rewrite_calls(mod, RULES))


def _activation(call: relax.Call, scope: Scope) -> relax.Expr | None:
    linear = ops.Linear.match(scope.value(call.args[0]))
    if linear is None or linear.activation or linear.residual is not None or not scope.used_once(0):
        return None
    return dataclasses.replace(linear, activation=ACTIVATION_OF[name_of(call)]).emit(call.ty)


def _add(call: relax.Call, scope: Scope) -> relax.Expr | None:
    for index, (product, residual) in enumerate((call.args, reversed(call.args))):
        linear = ops.Linear.match(scope.value(product))
        fits = tvm_ffi.structural_equal(product.ty.shape, residual.ty.shape)
        if linear is not None and linear.residual is None and fits and scope.used_once(index):
            return dataclasses.replace(linear, residual=residual).emit(call.ty)
    return None


RULES: dict[str, Rule] = {"add": _add, **dict.fromkeys(ACTIVATION_OF, _activation)}
