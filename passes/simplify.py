"""Removes operations that change nothing, and merges reshapes, transposes and equal expressions.

Before:  lv = R.astype(x, "float32")                          # x is float32
         lv1 = R.multiply(lv, R.const(1.0))
         lv2 = R.permute_dims(R.permute_dims(lv1, [1, 0, 2]), [1, 0, 2])
         lv3 = R.reshape(R.reshape(lv2, (n, 64)), (n, 4, 16))
After:   lv3 = R.reshape(x, (n, 4, 16))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax

from cupola.passes.rewrite import Rule, Scope, constant_of, name_of, pass_of, rewrite_calls, shape_of, tidy
from cupola.targets import ops


def simplify() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("simplify", lambda mod: tidy(relax.transform.EliminateCommonSubexpr()(rewrite_calls(mod, RULES))))


def _astype(call: relax.Call, _: Scope) -> relax.Expr | None:
    return call.args[0] if call.args[0].ty.dtype == call.attrs.dtype else None


def _multiply(call: relax.Call, _: Scope) -> relax.Expr | None:
    for kept, factor in (call.args, reversed(call.args)):
        if constant_of(factor) == 1.0 and kept.ty.dtype == factor.ty.dtype and len(factor.ty.shape) == 0:
            return kept
    return None


def _reshape(call: relax.Call, scope: Scope) -> relax.Expr | None:
    source, shape = call.args
    inner = scope.call(source, "reshape")
    if inner is not None:
        source = inner.args[0]
    if tvm_ffi.structural_equal(source.ty.shape, shape):
        return source
    return relax.op.reshape(source, shape) if inner is not None else None


def _permute_dims(call: relax.Call, scope: Scope) -> relax.Expr | None:
    axes, inner = axes_of(call), scope.call(call.args[0], "permute_dims")
    source = call.args[0]
    if inner is not None:
        source, axes = inner.args[0], [axes_of(inner)[axis] for axis in axes]
    if axes == sorted(axes):
        return source
    return relax.op.permute_dims(source, axes) if inner is not None else None


def _strided_slice(call: relax.Call, scope: Scope) -> relax.Expr | None:
    """A slice of everything, or of exactly one of the parts that a tensor was joined from."""
    x, steps = call.args[0], [int(step.value) for step in call.args[4]] if len(call.args) > 4 else []
    if any(step != 1 for step in steps):
        return None
    return x if tvm_ffi.structural_equal(call.ty.shape, x.ty.shape) else _part_of_concat(call, scope)


def _part_of_concat(call: relax.Call, scope: Scope) -> relax.Expr | None:
    axes, begins = ([int(value.value) for value in values] for values in call.args[1:3])
    joined = scope.call(call.args[0], "concat")
    parts = scope.value(joined.args[0]) if joined is not None else None
    if joined is None or not isinstance(parts, relax.Tuple) or len(axes) != 1:
        return None
    axis, start = int(joined.attrs.axis) % len(call.ty.shape), 0
    for part in parts.fields:
        size = shape_of(part)[axis]
        if axes[0] % len(call.ty.shape) != axis or not isinstance(size, int):
            return None
        if start == begins[0] and tvm_ffi.structural_equal(part.ty.shape, call.ty.shape):
            return part
        start += size
    return None


def _concat(call: relax.Call, scope: Scope) -> relax.Expr | None:
    parts = scope.value(call.args[0])
    if not isinstance(parts, relax.Tuple):
        return None
    full = [part for part in parts.fields if shape_of(part)[int(call.attrs.axis)] != 0]
    if not full or len(full) == len(parts.fields):
        return None
    return full[0] if len(full) == 1 else relax.op.concat(full, call.attrs.axis)


def _broadcast_to(call: relax.Call, _: Scope) -> relax.Expr | None:
    return call.args[0] if tvm_ffi.structural_equal(call.args[0].ty.shape, call.args[1]) else None


def _take(call: relax.Call, scope: Scope) -> relax.Expr | None:
    """Rows picked by known indices that count up are a slice; other indices are clipped, since "fast" trusts them blindly."""
    x, index = call.args
    given = _known(index, scope) if call.attrs.axis is not None else None
    rows = _from_start(given, x.ty.shape[int(call.attrs.axis)]) if given is not None else None
    if rows is not None and rows.ndim and rows.size and (rows.ravel()[1:] - rows.ravel()[:-1] == 1).all():
        axis = int(call.attrs.axis) % len(x.ty.shape)
        first, last = int(rows.ravel()[0]), int(rows.ravel()[-1])
        part = relax.op.strided_slice(x, [axis], [first], [last + 1], assume_inbound=True)
        return part if rows.ndim == 1 else relax.op.reshape(scope.emit(part), call.ty.shape)
    is_negative = rows is not None and given is not None and bool((given < 0).any())
    if not is_negative and call.attrs.mode != "fast":
        return None
    return relax.op.take(x, relax.const(rows) if is_negative else index, axis=call.attrs.axis, mode="clip")


def _gather_elements(call: relax.Call, scope: Scope) -> relax.Expr | None:
    """Rows picked with one index for all the entries of each are a `take`: rotation angles from a table, as GPT-J reads them."""
    table, tiled, narrow = call.args[0], scope.call(call.args[1], "tile"), _narrow_index(call.args[1], scope)
    if not narrow.same_as(call.args[1]):
        return relax.op.gather_elements(table, narrow, axis=call.attrs.axis)
    if tiled is None or int(call.attrs.axis) != 0 or len(call.ty.shape) != 2 or shape_of(call)[1:] != shape_of(table)[1:]:
        return None
    index = tiled.args[0]
    if len(index.ty.shape) != 2 or shape_of(index)[1] != 1 or int(tiled.attrs.repeats[0]) != 1:
        return None
    return relax.op.take(table, relax.op.reshape(index, [index.ty.shape[0]]), axis=0, mode="clip")


def _expert_linear(call: relax.Call, scope: Scope) -> relax.Expr | None:
    op = ops.ExpertLinear.match(call)
    assert op is not None
    narrow = _narrow_index(op.index, scope)
    return None if narrow.same_as(op.index) else dataclasses.replace(op, index=narrow).emit(call.ty)


def _narrow_index(index: relax.Expr, scope: Scope) -> relax.Expr:
    """An index before it was widened for torch, which has them in 64 bits."""
    cast = scope.call(index, "astype")
    return cast.args[0] if cast is not None and cast.args[0].ty.dtype == "int32" else index


def _tile(call: relax.Call, _: Scope) -> relax.Expr | None:
    return relax.op.reshape(call.args[0], call.ty.shape) if all(int(count) == 1 for count in call.attrs.repeats) else None


def _known(expr: relax.Expr, scope: Scope) -> npt.NDArray[Any] | None:
    """The numbers that an index is, if it depends on nothing: a constant, or zeros of a known size, of any shape and type."""
    value = scope.value(expr)
    if isinstance(value, tvm.ir.GenericConst):
        numbers: npt.NDArray[Any] = value.value.numpy()
        return numbers
    if not isinstance(value, relax.Call) or not all(isinstance(size, int) for size in shape_of(value)):
        return None
    if name_of(value) == "zeros":
        return np.zeros(shape_of(value), str(value.ty.dtype))
    inner = _known(value.args[0], scope) if name_of(value) in ("astype", "reshape") else None
    return None if inner is None else inner.reshape(shape_of(value)).astype(str(value.ty.dtype))


def _from_start(rows: npt.NDArray[Any], size: tvm.tirx.Expr) -> npt.NDArray[Any] | None:
    """Indices of an axis, negative ones counted from its start; None if its size is not known."""
    return np.where(rows < 0, rows + int(size), rows) if isinstance(size, tvm.tirx.IntImm) else None


def axes_of(call: relax.Call) -> list[int]:
    """The permutation of a `permute_dims`, whose axes may have been left out to mean the reverse."""
    rank = len(call.args[0].ty.shape)
    axes: Sequence[int] = call.attrs.axes if call.attrs.axes is not None else range(rank - 1, -1, -1)
    return [int(axis) % rank for axis in axes]


def swaps_last_axes(axes: Sequence[int]) -> bool:
    """True of a permutation that swaps the last two axes and keeps the others."""
    rank = len(axes)
    return rank > 1 and list(axes) == [*range(rank - 2), rank - 1, rank - 2]


def stacks_matrices(call: relax.Call) -> bool:
    """True of a `reshape` that places the matrices of a tensor with three axes one above the other."""
    before = shape_of(call.args[0]) if name_of(call) == "reshape" else []
    return len(before) == 3 and len(after := shape_of(call)) == 2 and after[1] == before[2]


RULES: dict[str, Rule] = {
    "astype": _astype,
    "multiply": _multiply,
    "reshape": _reshape,
    "permute_dims": _permute_dims,
    "broadcast_to": _broadcast_to,
    "take": _take,
    "gather_elements": _gather_elements,
    "cupola.expert_linear": _expert_linear,
    "tile": _tile,
    "strided_slice": _strided_slice,
    "concat": _concat,
}
