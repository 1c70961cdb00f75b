"""Recognizes rotary position embedding (Su et al., 2021).

Before:  lv = R.multiply(x, cos)                                     # x [heads, n, dim], cos and sin [1, n, dim]
         lv1 = R.concat((R.negative(x[:, :, dim / 2 :]), x[:, :, : dim / 2]), axis=-1)
         lv2 = R.add(lv, R.multiply(lv1, sin))
After:   lv2 = R.permute_dims(cupola.rotary(R.permute_dims(x, [1, 0, 2]), cos, sin), [1, 0, 2])   # cos, sin [n, dim]

Interleaved, Before has lv1 = R.reshape(R.stack((R.negative(x[:, :, 1::2]), x[:, :, ::2]), axis=-1), (heads, n, dim)).
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
            if _is_table(cos, x) and _is_table(sin, x):
                for is_turned, interleaved in ((_halves_turned, 0), (_pairs_turned, 1)):
                    if is_turned(half, x, scope):
                        return _rotary(x, cos, sin, interleaved, scope)
    return None


def _orders(product: relax.Call) -> tuple[Sequence[relax.Expr], Sequence[relax.Expr]]:
    return product.args, list(reversed(product.args))


def _rotary(x: relax.Expr, cos: relax.Expr, sin: relax.Expr, interleaved: int, scope: Scope) -> relax.Expr:
    table = list(cos.ty.shape)[1:]
    rows_first = scope.emit(relax.op.permute_dims(x, _SWAP))
    flat_cos, flat_sin = (scope.emit(relax.op.reshape(angle, table)) for angle in (cos, sin))
    return relax.op.permute_dims(scope.emit(ops.Rotary(rows_first, flat_cos, flat_sin, interleaved).emit(rows_first.ty)), _SWAP)


def _is_table(table: relax.Expr, x: relax.Expr) -> bool:
    """cos or sin [1, n, dim] for x [heads, n, dim]."""
    shape = shape_of(table)
    return len(shape) == 3 and shape[0] == 1 and tvm_ffi.structural_equal(list(table.ty.shape)[1:], list(x.ty.shape)[1:])


def _halves_turned(expr: relax.Expr, x: relax.Expr, scope: Scope) -> bool:
    """True if `expr` is concat(−x[dim/2:], x[:dim/2]) along the last axis."""
    parts, dim = _two_parts(scope.call(expr, "concat"), 2, scope), shape_of(x)[2]
    return parts is not None and _is_half(parts[0], x, dim // 2, 1, scope) and _is_half(parts[1], x, 0, 1, scope)


def _pairs_turned(expr: relax.Expr, x: relax.Expr, scope: Scope) -> bool:
    """True if `expr` is stack(−x[1::2], x[::2]) along a new last axis, made flat."""
    flat = scope.call(expr, "reshape")
    parts = _two_parts(scope.call(flat.args[0], "stack"), 3, scope) if flat is not None else None
    same = tvm_ffi.structural_equal(expr.ty.shape, x.ty.shape)
    return parts is not None and same and _is_half(parts[0], x, 1, 2, scope) and _is_half(parts[1], x, 0, 2, scope)


def _two_parts(joined: relax.Call | None, axis: int, scope: Scope) -> tuple[relax.Expr, relax.Expr] | None:
    """a and b of an operation that joins −a and b along `axis`, the last one."""
    parts = scope.value(joined.args[0]) if joined is not None else None
    if joined is None or not isinstance(parts, relax.Tuple) or len(parts.fields) != 2 or int(joined.attrs.axis) not in (-1, axis):
        return None
    negated = scope.call(parts.fields[0], "negative")
    return None if negated is None else (negated.args[0], parts.fields[1])


def _is_half(expr: relax.Expr, x: relax.Expr, start: int, step: int, scope: Scope) -> bool:
    """True if `expr` is the half of x's last dimensions that begins at `start`, each `step`-th of them."""
    part = scope.call(expr, "strided_slice")
    if part is None or not part.args[0].same_as(x) or shape_of(expr)[2] * 2 != shape_of(x)[2]:
        return False
    steps = [int(step.value) for step in part.args[4]] if len(part.args) > 4 else [1]
    return [int(axis.value) for axis in part.args[1]] == [2] and int(part.args[2][0].value) == start and steps == [step]
