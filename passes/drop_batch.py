"""Drops the leading batch axis of 1 that transformers models insist on: tokens lie flat in one axis.

Before:  lv: R.Tensor((1, n), "int32") = R.expand_dims(tokens, axis=[0])
         lv1: R.Tensor((1, n, 64)) = R.nn.silu(x)            # x [1, n, 64]
         lv2: R.Tensor((1, n, 4, 16)) = R.reshape(lv1, (1, n, 4, 16))
After:   lv1: R.Tensor((n, 64)) = R.nn.silu(x)               # x [n, 64]
         lv2: R.Tensor((n, 4, 16)) = R.reshape(lv1, (n, 4, 16))

Attention markers come out as [n, heads, dim], with the transposes that lead to that written before them; those of recurrences with a row a
token.
An operation that this pass does not know keeps its batch axis, between two reshapes. Where tokens are merged with the heads behind them,
[n · H, dim], they stay apart, as [n, H, dim].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule, relax

from cupola.passes.rewrite import ELEMENTWISE, name_of, pass_of, tidy
from cupola.passes.simplify import axes_of
from cupola.targets import ops

# Rebuilds a call from arguments without batch axis; gets the call and its arguments.
Rebuild = Callable[[relax.Call, list[relax.Expr]], relax.Expr]


def drop_batch() -> tvm.transform.Pass:
    """The pass."""
    return pass_of("drop_batch", _run)


def _run(mod: IRModule) -> IRModule:
    flattened = {var: _Flattener().run(func) for var, func in mod.functions_items()}
    return tidy(IRModule(flattened))


class _Flattener:
    """Rebuilds a straight-line function. `plain` holds values without batch axis, `flat` batched ones less that axis."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.plain: dict[relax.Var, relax.Expr] = {}
        self.flat: dict[relax.Var, relax.Expr] = {}

    def run(self, func: relax.Function) -> relax.Function:
        with self.builder.function("flat", list(func.params)):
            with self.builder.dataflow():
                for block in func.body.blocks:
                    for binding in block.bindings:
                        self._bind(binding.var, binding.value)
                out = self.builder.emit_output(self._plain(func.body.body))
            self.builder.emit_func_output(out)
        return self.builder.get()["flat"].with_attrs(func.attrs)

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Var) and value in self.flat:
            self.flat[var] = self.flat[value]
        elif isinstance(value, relax.Call) and self._adds_batch(value):
            self.flat[var] = self._plain(value.args[0])
        elif isinstance(value, relax.Call) and (apart := _tokens_apart(value)) is not None:
            self.flat[var] = self.builder.emit(relax.op.reshape(self._flat_or_plain(value.args[0]), apart))
        elif self._is_batched(value):
            self._bind_batched(var, value)
        else:
            self.plain[var] = self.builder.emit(self._plain(value))

    def _bind_batched(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Call) and name_of(value) == "reshape":
            source, shape = self._flat_or_plain(value.args[0]), list(value.args[1])
            batched = _is_one(shape[0])
            (self.flat if batched else self.plain)[var] = self.builder.emit(relax.op.reshape(source, shape[1:] if batched else shape))
        elif isinstance(value, relax.Call) and self._picks_only_batch(value):
            self.plain[var] = self._flat_or_plain(value.args[0])
        elif isinstance(value, relax.TupleGetItem):
            self.flat[var] = self.builder.emit(relax.TupleGetItem(self.flat[value.tuple_value], value.index))
        else:
            rebuilt = self._rebuilt(var, value)
            if rebuilt is not None:
                self.flat[var] = self.builder.emit(rebuilt)
            else:
                self.plain[var] = self.builder.emit(self._plain(value))

    def _rebuilt(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """The call without its batch axis, or None if that axis means something to it."""
        if not isinstance(value, relax.Call) or name_of(value) not in _REBUILD or not self._keeps_batch(value):
            return None
        rank = len(var.ty.shape) if isinstance(var.ty, relax.TensorType) else 0
        operands = [self._operand(arg, rank - (name_of(value) == "stack")) for arg in value.args]
        return None if any(operand is None for operand in operands) else _REBUILD[name_of(value)](value, operands)

    def _operand(self, arg: relax.Expr, rank: int) -> relax.Expr | None:
        """`arg` for a call on flat values, whose operands had `rank` axes; None if more than one entry met the batch axis."""
        if isinstance(arg, relax.Tuple):
            fields = [self._operand(field, rank) for field in arg.fields]
            return None if any(field is None for field in fields) else relax.Tuple(fields)
        type_ = getattr(arg, "ty", None)
        if arg in self.flat or not isinstance(type_, relax.TensorType) or len(type_.shape) < rank:
            return self._flat_or_plain(arg)
        return self.builder.emit(relax.op.reshape(self._plain(arg), list(type_.shape)[1:])) if _is_one(type_.shape[0]) else None

    def _keeps_batch(self, call: relax.Call) -> bool:
        """True if the call leaves the batch axis of its arguments where it is, and moves nothing along it."""
        name, first = name_of(call), call.args[0]
        if name == "permute_dims":
            return axes_of(call)[0] == 0
        if name == "matmul":
            return all(len(arg.ty.shape) > 2 for arg in call.args if arg in self.flat)
        if name == "take" and first not in self.flat:
            return call.attrs.axis is not None and int(call.attrs.axis) % len(first.ty.shape) == 0
        touched = _touched_axes(call)
        return touched is not None and 0 not in touched

    def _adds_batch(self, call: relax.Call) -> bool:
        adds = name_of(call) == "expand_dims" and [int(axis) for axis in call.attrs.axis] == [0] and call.args[0] not in self.flat
        return adds or (name_of(call) == "reshape" and self._prepends_one(call))

    def _prepends_one(self, call: relax.Call) -> bool:
        old, new = list(call.args[0].ty.shape), list(call.args[1])
        same = len(new) == len(old) + 1 and all(tvm_ffi.structural_equal(a, b) for a, b in zip(old, new[1:], strict=True))
        return same and _is_one(new[0]) and call.args[0] not in self.flat and not self._is_parameter(call.args[0])

    def _is_parameter(self, expr: relax.Expr) -> bool:
        return not isinstance(expr, relax.DataflowVar)

    def _picks_only_batch(self, call: relax.Call) -> bool:
        """`x[0]`, which comes as a `take` along the batch axis."""
        along = call.attrs.axis if name_of(call) == "take" else None
        return along is not None and int(along) == 0 and call.args[0] in self.flat and _is_scalar(call.args[1])

    def _is_batched(self, value: relax.Expr) -> bool:
        if isinstance(value, relax.TupleGetItem):
            return value.tuple_value in self.flat
        if isinstance(value, relax.Call) and name_of(value) in _MARKERS:
            return True  # also where its inputs lost track of the batch axis
        parts = value.args if isinstance(value, relax.Call) else value.fields if isinstance(value, relax.Tuple) else []
        return any(part in self.flat if isinstance(part, relax.Var) else self._is_batched(part) for part in parts)

    def _flat_or_plain(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._flat_or_plain(field) for field in expr.fields])
        if isinstance(expr, relax.Var) and expr in self.flat:
            return self.flat[expr]
        return self._plain(expr)

    def _plain(self, expr: relax.Expr) -> relax.Expr:
        """`expr` over values with their original shapes; a batched one gets its axis of 1 back."""
        if isinstance(expr, relax.Var):
            if expr in self.flat:
                return self.builder.emit(relax.op.reshape(self.flat[expr], list(expr.ty.shape)))
            return self.plain.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._plain(field) for field in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return relax.TupleGetItem(self._plain(expr.tuple_value), expr.index)
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [self._plain(arg) for arg in expr.args], expr.attrs, expr.ty_args)
        return expr


def _is_one(size: object) -> bool:
    return isinstance(size, tvm.tirx.IntImm) and int(size) == 1


def _tokens_apart(call: relax.Call) -> list[tvm.tirx.Expr] | None:
    """The shape [n, H, …] of a reshape to [n · H, …], which stands for it: a size must be n, so that kernels know what it is."""
    first, *rest = list(call.args[1]) if name_of(call) == "reshape" else [None]
    if not isinstance(first, tvm.tirx.Mul) or not isinstance(first.a, tvm.tirx.Var) or not isinstance(first.b, tvm.tirx.IntImm):
        return None
    return [first.a, first.b, *rest] if rest else None


def _is_scalar(index: relax.Expr) -> bool:
    return not isinstance(index.ty, relax.TensorType) or len(index.ty.shape) == 0


def _touched_axes(call: relax.Call) -> set[int] | None:
    """The axes, counted from the start, that an operation moves data along; None for all of them."""
    name = name_of(call)
    if name not in _AXES:
        return set()
    axes = _AXES[name](call)
    shape = (call if name in ("concat", "stack", "expand_dims") else call.args[0]).ty.shape
    return None if axes is None else {int(axis) % len(shape) for axis in (axes if isinstance(axes, Sequence) else [axes])}


def _unary(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.Call(call.op, args, call.attrs)


def _from_end(axis: int, rank: int) -> int:
    """An axis counted from the end, which dropping a leading axis does not move."""
    return int(axis) - rank if axis >= 0 else int(axis)


def _axes(call: relax.Call) -> list[int]:
    return [_from_end(axis, len(call.args[0].ty.shape)) for axis in call.attrs.axis]


def _to_shape(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.reshape(args[0], list(call.ty.shape)[1:])


def _concat(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.concat(args[0], axis=_from_end(call.attrs.axis, len(call.ty.shape)))


def _stack(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.stack(args[0], axis=_from_end(call.attrs.axis, len(call.ty.shape)))


def _split(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    where = call.attrs.indices_or_sections
    sections = int(where) if isinstance(where, int | tvm.tirx.IntImm) else [int(i) for i in where]
    return relax.op.split(args[0], sections, axis=_from_end(call.attrs.axis, len(call.args[0].ty.shape)))


def _slice(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    rank = len(call.args[0].ty.shape)
    axes = [_from_end(int(axis.value), rank) for axis in call.args[1]]
    return relax.op.strided_slice(args[0], [axis + rank - 1 for axis in axes], *call.args[2:], assume_inbound=call.attrs.assume_inbound)


def _take(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    dropped = len(call.args[0].ty.shape) - len(args[0].ty.shape)  # 0 where only the indices had a batch axis
    return relax.op.take(args[0], args[1], axis=int(call.attrs.axis) % len(call.args[0].ty.shape) - dropped, mode=call.attrs.mode)


def _permute(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.permute_dims(args[0], [int(axis) - 1 for axis in call.attrs.axes[1:]])


def _repeat(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.repeat(args[0], call.attrs.repeats, axis=_from_end(call.attrs.axis, len(call.ty.shape)))


def _tile(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.tile(args[0], list(call.attrs.repeats)[1:])


def _gather_elements(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.gather_elements(*args, axis=int(call.attrs.axis) % len(call.ty.shape) - 1)


def _mean(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    return relax.op.mean(args[0], axis=_axes(call), keepdims=call.attrs.keepdims)


def _layer_norm(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    axes = [_from_end(axis, len(call.args[0].ty.shape)) for axis in call.attrs.axes]
    return relax.op.nn.layer_norm(*args, axes=axes, epsilon=call.attrs.epsilon, center=call.attrs.center, scale=call.attrs.scale)


def _attention(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    marker = ops.Attention.match(relax.Call(call.op, [call.args[0], args[1]], call.attrs, call.ty_args))
    assert marker is not None
    q, k, v = (relax.op.permute_dims(x, [1, 0, 2]) for x in (marker.q, marker.k, marker.v))
    flat = ops.Attention(q, k, v, marker.slopes, marker.sinks, marker.layer, marker.scale, marker.window, marker.softcap)
    return flat.emit(relax.TensorType(list(call.ty.shape)[1:], call.ty.dtype))


def _top_k(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    marker = ops.TopK.match(relax.Call(call.op, [call.args[0], args[1]], call.attrs, call.ty_args))
    assert marker is not None
    return marker.call()


def _recurrence(call: relax.Call, args: list[relax.Expr]) -> relax.Expr:
    marker = ops.match_recurrence(relax.Call(call.op, [call.args[0], args[1]], call.attrs, call.ty_args))
    assert marker is not None
    given = {name: getattr(marker, name) for name in marker.batched}
    flat = {name: _one_batch_less(x, marker.batched[name]) for name, x in given.items() if x is not None}
    return replace(marker, **flat).emit(relax.TensorType(list(call.ty.shape)[1:], call.ty.dtype))


def _one_batch_less(x: relax.Expr, axes: tuple[int, ...]) -> relax.Expr:
    """x with so many axes, or others, behind its rows; one more is the batch's."""
    shape = list(x.ty.shape)
    return x if len(shape) - 1 in axes and not _is_one(shape[0]) else relax.op.reshape(x, shape[1:])


def _tiled_axes(call: relax.Call) -> list[int] | None:
    counts = [int(count) for count in call.attrs.repeats]
    return [axis for axis, count in enumerate(counts) if count != 1] if len(counts) == len(call.args[0].ty.shape) else None


_AXES: dict[str, Callable[[relax.Call], Any]] = {
    **dict.fromkeys(
        ("concat", "stack", "split", "repeat", "take", "mean", "expand_dims", "squeeze", "gather_elements"), lambda call: call.attrs.axis
    ),
    "tile": _tiled_axes,
    "nn.layer_norm": lambda call: call.attrs.axes,
    "strided_slice": lambda call: [int(axis.value) for axis in call.args[1]],
}
_REBUILD: dict[str, Rebuild] = {
    **dict.fromkeys((*ELEMENTWISE, "matmul"), _unary),
    "expand_dims": _to_shape, "squeeze": _to_shape, "concat": _concat, "stack": _stack, "split": _split,
    "strided_slice": _slice, "take": _take, "permute_dims": _permute, "repeat": _repeat, "mean": _mean,
    "tile": _tile, "gather_elements": _gather_elements, "nn.layer_norm": _layer_norm, "cupola.attention": _attention,
    "cupola.top_k": _top_k,
    **{ops.PREFIX + op.name: _recurrence for op in ops.RECURRENCES},
}  # fmt: skip
_MARKERS = {"cupola.attention", *(ops.PREFIX + op.name for op in ops.RECURRENCES)}
