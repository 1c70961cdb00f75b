"""Recognizes rotary position embedding (Su et al., 2021) that rotates halves.

Before:  lv = R.multiply(x, cos)                                     # x [heads, n, dim], cos and sin [1, n, dim]
         lv1 = R.concat((R.negative(x[:, :, dim / 2 :]), x[:, :, : dim / 2]), axis=-1)
         lv2 = R.add(lv, R.multiply(lv1, sin))
After:   lv2 = R.permute_dims(cupola.rotary(R.permute_dims(x, [1, 0, 2]), cos, sin), [1, 0, 2])   # cos, sin [n, dim]
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import relax

from cupola.passes.rewrite import Scope, pass_of, rewrite_calls, shape_of
from cupola.targets import ops

_SWAP = [1, 0, 2]  # heads first <-> tokens first


def fuse_rotary() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("fuse_rotary", lambda mod: rewrite_calls(mod, {"add": _rule}))


def _rule(call: relax.Call, scope: Scope) -> relax.Expr | None:
    left, right = (scope.call(arg, "multiply") for arg in call.args)
    if left is None or right is None or len(call.ty.shape) != 3:
        return None
    for straight, turned in ((left, right), (right, left)):
        for (x, cos), (half, sin) in itertools.product(_orders(straight), _orders(turned)):
            if _is_table(cos, x) and _is_table(sin, x) and _is_rotation(half, x, scope):
                return _rotary(x, cos, sin, scope)
    return None


def _orders(product: relax.Call) -> tuple[Sequence[relax.Expr], Sequence[relax.Expr]]:
    return product.args, list(reversed(product.args))


def _rotary(x: relax.Expr, cos: relax.Expr, sin: relax.Expr, scope: Scope) -> relax.Expr:
    table = list(cos.ty.shape)[1:]
    rows_first = scope.emit(relax.op.permute_dims(x, _SWAP))
    flat = [scope.emit(relax.op.reshape(angle, table)) for angle in (cos, sin)]
    return relax.op.permute_dims(scope.emit(ops.Rotary(rows_first, *flat).emit(rows_first.ty)), _SWAP)


def _is_table(table: relax.Expr, x: relax.Expr) -> bool:
    """cos or sin [1, n, dim] for x [heads, n, dim]."""
    shape = shape_of(table)
    return len(shape) == 3 and shape[0] == 1 and tvm_ffi.structural_equal(list(table.ty.shape)[1:], list(x.ty.shape)[1:])


def _is_rotation(expr: relax.Expr, x: relax.Expr, scope: Scope) -> bool:
    """Whether `expr` is concat(−x[dim/2:], x[:dim/2]) along the last axis."""
    concat = scope.call(expr, "concat")
    parts = scope.value(concat.args[0]) if concat is not None else None
    if concat is None or not isinstance(parts, relax.Tuple) or len(parts.fields) != 2 or int(concat.attrs.axis) not in (-1, 2):
        return False
    negated, dim = scope.call(parts.fields[0], "negative"), shape_of(x)[2]
    return negated is not None and _is_half(negated.args[0], x, dim // 2, scope) and _is_half(parts.fields[1], x, 0, scope)


def _is_half(expr: relax.Expr, x: relax.Expr, start: int, scope: Scope) -> bool:
    part = scope.call(expr, "strided_slice")
    if part is None or not part.args[0].same_as(x) or shape_of(expr)[2] * 2 != shape_of(x)[2]:
        return False
    steps = [int(step.value) for step in part.args[4]] if len(part.args) > 4 else [1]
    return [int(axis.value) for axis in part.args[1]] == [2] and int(part.args[2][0].value) == start and steps == [1]
