"""Recognizes linear layers, with their bias.

Before:  lv = R.matmul(x, R.permute_dims(weight))       # x [n, K], weight [N, K]
         lv1 = R.add(lv, bias)                          # bias [N]
After:   lv1 = cupola.linear(x, weight, bias)

An x of more axes, such as the one head of a latent vector has, goes through as rows, between two reshapes.
"""

from __future__ import annotations

import dataclasses
import math

import tvm
from tvm import relax

from cupola.passes.rewrite import Rule, Scope, pass_of, rewrite_calls, shape_of
from cupola.passes.simplify import axes_of
from cupola.targets import ops


def fuse_linear() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_linear", lambda mod: rewrite_calls(mod, RULES))


def _matmul(call: relax.Call, scope: Scope) -> relax.Expr | None:
    x, right = call.args
    shape, sizes = shape_of(right), list(x.ty.shape)
    if len(sizes) < 2 or len(shape) != 2 or not all(isinstance(size, int) for size in shape):
        return None
    transposed = scope.call(right, "permute_dims")
    swapped = transposed is not None and axes_of(transposed) == [1, 0]
    weight = transposed.args[0] if transposed is not None and swapped else scope.emit(relax.op.permute_dims(right))
    if len(sizes) == 2:
        return ops.Linear(x, weight, None, None, "").emit(call.ty)
    num_rows = math.prod(sizes[:-1])
    rows = scope.emit(relax.op.reshape(x, [num_rows, sizes[-1]]))
    product = scope.emit(ops.Linear(rows, weight, None, None, "").emit(relax.TensorType([num_rows, shape[1]], call.ty.dtype)))
    return relax.op.reshape(product, call.ty.shape)


def _add(call: relax.Call, scope: Scope) -> relax.Expr | None:
    for index, (product, bias) in enumerate((call.args, reversed(call.args))):
        linear = ops.Linear.match(scope.value(product))
        plain = linear is not None and linear.bias is None and linear.residual is None and not linear.activation
        if linear is not None and plain and shape_of(bias) == shape_of(linear.weight)[:1] and scope.used_once(index):
            return dataclasses.replace(linear, bias=bias).emit(call.ty)
    return None


RULES: dict[str, Rule] = {"matmul": _matmul, "add": _add}
