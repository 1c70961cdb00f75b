"""GGUF's blocks of 32 values as they are: codes, scales and mins. Of Q4_K, whose scales are products, those are rounded to float16.

The layouts are those of ggml-common.h (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h); a block's first 16 values are
the low halves of its bytes, the last 16 the high ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cupola.compiler.sources.base import Array
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tensor import QuantizedTensor

# By ggml type: the format that holds its blocks. Codes of 5 bits take up 8.
FORMATS = {
    "Q4_0": WeightFormat(4, 32),
    "Q4_1": WeightFormat(4, 32, zero_point="mins"),
    "Q4_K": WeightFormat(4, 32, zero_point="mins"),
    "Q5_0": WeightFormat(8, 32),
    "Q8_0": WeightFormat(8, 32),
}


def _fields(data: Array, num_rows: int, *sizes: int) -> list[Array]:
    """The fields of every block, [rows, blocks, bytes] each; `sizes` are their bytes in order."""
    blocks = data.reshape(num_rows, -1, sum(sizes))
    return [np.ascontiguousarray(field) for field in np.split(blocks, np.cumsum(sizes)[:-1], axis=2)]


def _f16(field: Array) -> Array:
    return field.view(np.float16)[..., 0]


def _nibbles(field: Array) -> Array:
    """[rows, blocks, 16] bytes -> [rows, blocks, 32] codes."""
    return np.concatenate((field & 15, field >> 4), axis=2)


def _rows(codes: Array) -> Array:
    return codes.reshape(codes.shape[0], -1)


def _q4_0(data: Array, num_rows: int) -> QuantizedTensor:
    scales, nibbles = _fields(data, num_rows, 2, 16)
    return QuantizedTensor(FORMATS["Q4_0"], _rows(_nibbles(nibbles)), _f16(scales))


def _q4_1(data: Array, num_rows: int) -> QuantizedTensor:
    scales, mins, nibbles = _fields(data, num_rows, 2, 2, 16)
    return QuantizedTensor(FORMATS["Q4_1"], _rows(_nibbles(nibbles)), _f16(scales), _f16(mins))


def _q5_0(data: Array, num_rows: int) -> QuantizedTensor:
    scales, fifth, nibbles = _fields(data, num_rows, 2, 4, 16)
    fifth_bits = np.unpackbits(fifth, axis=2, bitorder="little")
    return QuantizedTensor(FORMATS["Q5_0"], _rows((_nibbles(nibbles) | fifth_bits << 4).view(np.int8) - np.int8(16)), _f16(scales))


def _q8_0(data: Array, num_rows: int) -> QuantizedTensor:
    scales, codes = _fields(data, num_rows, 2, 32)
    return QuantizedTensor(FORMATS["Q8_0"], _rows(codes.view(np.int8)), _f16(scales))


def _q4_k(data: Array, num_rows: int) -> QuantizedTensor:
    scale, min_scale, packed, nibbles = _fields(data, num_rows, 2, 2, 12, 128)
    from gguf.quants import Q4_K

    factors = Q4_K.get_scale_min(packed.reshape(-1, 12))
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file's numbers
        scales, mins = (
            (_f16(unit).astype(np.float32)[..., None] * factor.reshape(*unit.shape[:2], 8)).astype(np.float16).reshape(num_rows, -1)
            for unit, factor in zip((scale, min_scale), factors, strict=True)
        )
    chunks = nibbles.reshape(num_rows, -1, 32)  # the low halves of 32 bytes are one group, the high ones the next
    return QuantizedTensor(FORMATS["Q4_K"], _rows(np.stack((chunks & 15, chunks >> 4), axis=2)), scales, -mins)


# By ggml type: from a tensor's bytes and its number of rows.
BLOCKS: dict[str, Callable[[Array, int], QuantizedTensor]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q5_0": _q5_0, "Q8_0": _q8_0}
