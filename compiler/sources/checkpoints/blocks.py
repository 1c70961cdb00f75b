"""Weights of codes, scales and zeros, as `QuantizedTensor` has them, of what checkpoints store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor

_SLICE = 32  # inputs that kernels take at a time: a group that is a whole row has a multiple of them
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def group_size_of(width: int, size: int) -> int:
    """The group size of rows of `width` values that a checkpoint quantizes in groups of `size`; 0 or less: of whole rows."""
    return size if 0 < size < width else -(-width // _SLICE) * _SLICE


def integers(bits: int, group_size: int, scale: LazyTensor | str, *, has_zeros: bool) -> WeightFormat:
    """The format that holds integers of up to 8 bits; of those between, codes take up 4 or 8."""
    dtype = scale if isinstance(scale, str) else _DTYPES[scale.stored_as]
    return WeightFormat(4 if bits <= 4 else 8, group_size, dtype, "codes" if has_zeros else "none")


def integer_tensor(form: WeightFormat, codes: Array, scales: Array, zeros: Array | int) -> QuantizedTensor:
    """Values scale · (code − zero): codes u8 [N, K], none below 0, scales [N, groups], zeros [N, groups] alike or one for all."""
    scales = np.ascontiguousarray(scales.astype(_numpy(form.scale_dtype), copy=False))
    wide = _padded(codes, form.group_size)
    if not form.has_zeros:
        assert isinstance(zeros, int)
        shifted = wide + np.uint8((form.zero - zeros) % 256)
        if wide.shape != codes.shape:
            shifted[:, codes.shape[1] :] = form.zero % 256
        return QuantizedTensor(form, shifted.view(form.code_dtype), scales)
    lows = np.broadcast_to(np.asarray(zeros), scales.shape).astype(np.uint8)
    if wide.shape != codes.shape:  # so that padding stands for 0
        wide[:, codes.shape[1] :] = lows[:, -1:]
    offset = np.uint8(128 if form.code_dtype == "int8" else 0)
    return QuantizedTensor(form, (wide - offset).view(form.code_dtype), scales, (lows - offset).view(form.code_dtype))


def table_tensor(form: WeightFormat, codes: Array, scales: Array) -> QuantizedTensor:
    """Values scale · table[code]: codes u8 [N, K], scales [N, groups]. Code 0 stands for 0, or rows are whole groups."""
    return QuantizedTensor(form, _padded(codes, form.group_size), np.ascontiguousarray(scales.astype(_numpy(form.scale_dtype), copy=False)))


def quantized(
    name: str,
    shape: tuple[int, int],
    stored_as: str,
    form: WeightFormat,
    blocks: Callable[[], QuantizedTensor],
    order: Array | None = None,
) -> LazyTensor:
    """The weight [N, K] of these blocks; with an `order`, column j of the blocks is column order[j] of the weight."""

    def load() -> Array:
        values = blocks().values()[:, : shape[1]]
        if order is None:
            return np.ascontiguousarray(values)
        placed = np.empty_like(values)
        placed[:, order] = values
        return placed

    return LazyTensor(name, shape, "float32", load, stored_as, form, blocks, order=order)


def floats(name: str, shape: tuple[int, ...], stored_as: str, load: Callable[[], Array]) -> LazyTensor:
    """A weight whose groups do not lie along rows: its values in float32."""
    return LazyTensor(name, shape, "float32", load, stored_as)


def renamed(tensor: LazyTensor, name: str) -> LazyTensor:
    """The tensor by another name."""
    return dataclasses.replace(tensor, name=name)


def unpack(words: Array, bits: int) -> Array:
    """int32 [N, words] -> u8 [N, 32 · words / bits]: codes one after the other from the lowest bit of the first word on."""
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        codes = words.view(np.uint32)[..., None] >> shifts & np.uint32((1 << bits) - 1)
        return codes.astype(np.uint8).reshape(len(words), -1)
    raw = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    flags = np.unpackbits(raw, axis=1, bitorder="little").reshape(len(words), -1, bits)
    return np.packbits(np.pad(flags, ((0, 0), (0, 0), (0, 8 - bits))), axis=2, bitorder="little")[..., 0]


def nibbles(raw: Array, *, high_first: bool = False) -> Array:
    """u8 [..., n] -> [..., 2n]: the two halves of each byte."""
    halves = (raw >> 4, raw & 15) if high_first else (raw & 15, raw >> 4)
    return np.stack(halves, axis=-1).reshape(*raw.shape[:-1], -1)


def column_order(groups: Array, group_size: int) -> Array | None:
    """The order of columns that puts groups one after the other, i32 [K]; None if they come so already.

    Raises:
        ValueError: groups are not of `group_size` columns, but for the last one.
    """
    width = len(groups)
    expected = np.arange(width) // group_size
    if np.array_equal(groups, expected):
        return None
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], expected):
        raise ValueError
    return order.astype(np.int32)


def spread(scales: Array, num_rows: int, block_rows: int) -> Array:
    """Scales of blocks of rows [⌈N / block⌉, groups] -> of each row [N, groups]."""
    return np.repeat(scales, block_rows, axis=0)[:num_rows] if block_rows > 1 else scales


def _padded(codes: Array, group_size: int) -> Array:
    extra = -codes.shape[1] % group_size
    return np.pad(codes, ((0, 0), (0, extra))) if extra else np.ascontiguousarray(codes)


def _numpy(dtype: str) -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
