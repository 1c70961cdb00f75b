"""Lazy tensors that are made of others: stacked, joined, their rows in another order, turned.

Where the parts come in blocks of one format, so does what is made of them. Tensors with three axes are matrices, such as those of experts,
which are read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor


def stacked(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors of one shape along a new first axis; one of them is in memory beside the result."""
    first, dtype = tensors[0], _dtype_of(tensors)
    shape = (len(tensors), *first.shape)

    def load() -> Array:
        whole = np.empty(shape, _numpy_dtype(dtype))
        for number, tensor in enumerate(tensors):
            whole[number] = tensor.load()
        return whole

    form, blocks = _joined_blocks(tensors) if len(shape) == 3 else (None, None)
    return LazyTensor(first.name, shape, dtype, load, _stored_as(tensors), form, blocks, tuple(tensors), is_turned=first.is_turned)


def joined(tensors: Sequence[LazyTensor], axis: int = 0) -> LazyTensor:
    """Tensors one after another along their first axis; or, axis 1, within each slab of it."""
    if axis:
        return stacked([joined(slabs, axis - 1) for slabs in zip(*map(_slabs, tensors), strict=True)])
    first = tensors[0]
    shape = (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:])
    form, blocks = _joined_blocks(tensors) if len(shape) == 2 and not first.is_turned else (None, None)
    made = combined(tensors, lambda *arrays: np.concatenate(arrays), shape)
    return replace(made, stored_as=_stored_as(tensors), format=form, blocks=blocks)


def in_order(tensor: LazyTensor, rows: Array, axis: int = 0) -> LazyTensor:
    """With other rows, or the same in another order: row i is row rows[i]; axis 1: within each slab."""
    if axis:
        return stacked([in_order(slab, rows, axis - 1) for slab in _slabs(tensor)])
    blocks, block_rows = tensor.blocks, tensor.block_rows
    made = combined([tensor], lambda values: values[rows], (len(rows), *tensor.shape[1:]))
    return replace(
        tensor,
        shape=made.shape,
        load=made.load,
        blocks=None if blocks is None else lambda: blocks().in_order(rows),
        block_rows=None if block_rows is None else lambda some: block_rows(rows[some]),
    )


def turned(tensor: LazyTensor) -> LazyTensor:
    """With the last two axes swapped; blocks stay those of the matrices as they lay."""
    shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
    load = combined([tensor], lambda values: np.swapaxes(values, -1, -2), shape).load
    slabs = tuple(map(turned, tensor.slabs))
    return replace(tensor, shape=shape, load=load, slabs=slabs, is_turned=not tensor.is_turned)


def combined(tensors: Sequence[LazyTensor], function: Callable[..., Array], shape: tuple[int, ...]) -> LazyTensor:
    """`function` of the tensors' arrays, which have no blocks."""
    dtype, first = _dtype_of(tensors), tensors[0]

    def load() -> Array:
        arrays = [tensor.load().astype(_numpy_dtype(dtype), copy=False) for tensor in tensors]
        return np.ascontiguousarray(function(*arrays), dtype=_numpy_dtype(dtype))

    return LazyTensor(first.name, shape, dtype, load, stored_as=first.stored_as)


def _slabs(tensor: LazyTensor) -> Sequence[LazyTensor]:
    """A tensor for each index of the first axis."""
    if tensor.slabs:
        return tensor.slabs

    def slab(number: int) -> LazyTensor:
        return LazyTensor(tensor.name, tensor.shape[1:], tensor.dtype, lambda: tensor.load()[number], tensor.stored_as)

    return [slab(number) for number in range(tensor.shape[0])]


def _joined_blocks(tensors: Sequence[LazyTensor]) -> tuple[WeightFormat | None, Callable[[], QuantizedTensor] | None]:
    """The format that all come in, and the blocks of all, row under row; None if they share none, or columns have orders of their own."""
    first, parts = tensors[0], [tensor.blocks for tensor in tensors if tensor.blocks is not None and tensor.order is None]
    shapes = [tensor.shape[::-1] if tensor.is_turned else tensor.shape for tensor in tensors]
    kinds = {(tensor.format, tensor.stored_as, tensor.is_turned, shape[1]) for tensor, shape in zip(tensors, shapes, strict=True)}
    if len(kinds) > 1 or first.format is None or len(parts) < len(tensors):
        return None, None
    num_rows = sum(shape[0] for shape in shapes)
    return first.format, lambda: QuantizedTensor.joined((part() for part in parts), num_rows)


def _stored_as(tensors: Sequence[LazyTensor]) -> str:
    kinds = {tensor.stored_as for tensor in tensors}
    return kinds.pop() if len(kinds) == 1 else ""


def _dtype_of(tensors: Sequence[LazyTensor]) -> str:
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _numpy_dtype(dtype: str) -> Any:
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
