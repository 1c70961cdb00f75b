"""GGUF's blocks as they are: codes, scales and mins, none rounded.

The layouts are those of ggml-common.h (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h). Types of 32 values a block, and
those with scales of their own, have one level of scales. Of 256 values a block, K-quants and their relatives have scale codes for groups
of 16 or 32, and a super scale. `gguf_lattices` has the types that store numbers by the place in a lattice.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.gguf_lattices import is_lattice, read_lattice
from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.ggml import GGML_FORMATS
from cupola.targets.formats.tensor import QuantizedTensor
from cupola.targets.native.weights import unpack_nibbles

_NAN_E8M0 = 255


def _fields(data: Array, num_rows: int, *sizes: int) -> list[Array]:
    """The fields of every block, [rows, blocks, bytes] each; `sizes` are their bytes in order."""
    blocks = data.reshape(num_rows, -1, sum(sizes))
    return [np.ascontiguousarray(field) for field in np.split(blocks, np.cumsum(sizes)[:-1], axis=2)]


def _f16(field: Array) -> Array:
    return field.view(np.float16)[..., 0]


def _parts(field: Array, width: int, bits: int) -> Array:
    """[rows, blocks, bytes] -> [rows, values]: of every `width` bytes the lowest bits, then the next ones, up to the highest."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return _rows((field.reshape(*field.shape[:2], -1, 1, width) >> shifts) & np.uint8((1 << bits) - 1))


def _rows(codes: Array) -> Array:
    return codes.reshape(codes.shape[0], -1)


def _one_level(name: str, *sizes: int) -> Callable[[Array, int], QuantizedTensor]:
    """Scales, perhaps mins, perhaps fifth bits, and nibbles: a block's first 16 values are the low halves of its bytes."""
    form = GGML_FORMATS[name]

    def read(data: Array, num_rows: int) -> QuantizedTensor:
        blocks, ends = data.reshape(num_rows, -1, sum(sizes)), np.cumsum(sizes[:-1])
        rest = [np.ascontiguousarray(field) for field in np.split(blocks[..., : ends[-1]], ends[:-1], axis=2)]
        codes = unpack_nibbles(blocks, ends[-1])
        if form.bits == 5:
            codes |= _rows(np.unpackbits(rest.pop(), axis=2, bitorder="little")) << 4
        return QuantizedTensor.of(form, codes, *map(_f16, rest))

    return read


def _q8_0(data: Array, num_rows: int) -> QuantizedTensor:
    scales, codes = _fields(data, num_rows, 2, 32)
    return QuantizedTensor(GGML_FORMATS["Q8_0"], _rows(codes.view(np.int8)), _f16(scales))


def _mxfp4(data: Array, num_rows: int) -> QuantizedTensor:
    """Scales are E8M0, powers of two from 2^-127 up, which bfloat16 has all."""
    scales, nibbles = _fields(data, num_rows, 1, 16)
    exponents = scales[..., 0]
    if (exponents == _NAN_E8M0).any():
        raise UnsupportedError("a weight of MXFP4 has NaN as a scale", field="weights", fix="check the file it comes from")
    bits = np.where(exponents == 0, np.uint16(0x40), exponents.astype(np.uint16) << 7)  # 2^-127 is a subnormal number
    return QuantizedTensor(GGML_FORMATS["MXFP4"], _parts(nibbles, 16, 4), bits.view(ml_dtypes.bfloat16))


def _tq1_0(data: Array, num_rows: int) -> QuantizedTensor:
    """Five numbers of −1 to 1 a byte, as a fraction in base 3, and four in each of the last four bytes."""
    wide, narrow, last, scales = _fields(data, num_rows, 32, 16, 4, 2)
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    digits = [field[:, :, None] * powers[:count] for field, count in ((wide, 5), (narrow, 5), (last, 4))]
    bytes_of = np.concatenate([each.reshape(*each.shape[:2], -1) for each in digits], axis=2)
    return _ternary("TQ1_0", (bytes_of.astype(np.uint16) * 3 >> 8).astype(np.uint8), scales)


def _tq2_0(data: Array, num_rows: int) -> QuantizedTensor:
    codes, scales = _fields(data, num_rows, 64, 2)
    return _ternary("TQ2_0", _parts(codes, 32, 2), scales)


def _ternary(name: str, digits: Array, scales: Array) -> QuantizedTensor:
    """Digits less 1, from −1 to 2: with 0 at code 2 they are codes from the highest down, of negative scales."""
    return QuantizedTensor(GGML_FORMATS[name], np.uint8(3) - _rows(digits), -_f16(scales))


def _q1_0(data: Array, num_rows: int) -> QuantizedTensor:
    """A bit is the scale or its negative."""
    scales, bits = _fields(data, num_rows, 2, 16)
    return QuantizedTensor(GGML_FORMATS["Q1_0"], 1 + 2 * _rows(np.unpackbits(bits, axis=2, bitorder="little")), _f16(scales))


def _q2_k(data: Array, num_rows: int) -> QuantizedTensor:
    factors, codes, scale, low = _fields(data, num_rows, 16, 64, 2, 2)
    return QuantizedTensor(GGML_FORMATS["Q2_K"], _parts(codes, 32, 2), _rows(factors & 15), _rows(factors >> 4), _f16(scale), -_f16(low))


def _q3_k(data: Array, num_rows: int) -> QuantizedTensor:
    high, codes, low_scales, high_scales, scale = _fields(data, num_rows, 32, 64, 8, 4, 2)
    scales = _parts(low_scales, 8, 4) | _parts(high_scales, 4, 2) << 4
    codes = _parts(codes, 32, 2) | _parts(high, 32, 1) << 2
    return QuantizedTensor(GGML_FORMATS["Q3_K"], codes, scales.view(np.int8) - np.int8(32), super_scales=_f16(scale))


def _q4_k(data: Array, num_rows: int) -> QuantizedTensor:
    scale, low, factors, codes = _fields(data, num_rows, 2, 2, 12, 128)
    return QuantizedTensor(GGML_FORMATS["Q4_K"], _parts(codes, 32, 4), *_scales_and_mins(factors), _f16(scale), -_f16(low))


def _q5_k(data: Array, num_rows: int) -> QuantizedTensor:
    scale, low, factors, high, codes = _fields(data, num_rows, 2, 2, 12, 32, 128)
    codes = _parts(codes, 32, 4) | _parts(high, 32, 1) << 4
    return QuantizedTensor(GGML_FORMATS["Q5_K"], codes, *_scales_and_mins(factors), _f16(scale), -_f16(low))


def _scales_and_mins(factors: Array) -> tuple[Array, Array]:
    """8 scales and 8 mins of 6 bits in 12 bytes: four of each as they are, above those the others' high bits, last their low ones."""
    scales, mins, rest = np.split(factors, 3, axis=2)

    def whole(each: Array, low: Array) -> Array:
        return _rows(np.concatenate((each & 63, (low & 15) | (each >> 2 & 48)), axis=2))

    return whole(scales, rest), whole(mins, rest >> 4)


def _q6_k(data: Array, num_rows: int) -> QuantizedTensor:
    low, high, scales, scale = _fields(data, num_rows, 128, 64, 16, 2)
    codes = _parts(low, 64, 4) | _parts(high, 32, 2) << 4
    return QuantizedTensor(GGML_FORMATS["Q6_K"], codes, _rows(scales.view(np.int8)), super_scales=_f16(scale))


def _iq4_xs(data: Array, num_rows: int) -> QuantizedTensor:
    scale, high, low, codes = _fields(data, num_rows, 2, 2, 4, 128)
    high_bits = high.view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = _parts(low, 1, 4) | _rows(high_bits.astype(np.uint8)) << 4
    return QuantizedTensor(GGML_FORMATS["IQ4_XS"], _parts(codes, 16, 4), scales.view(np.int8) - np.int8(32), super_scales=_f16(scale))


def _lattice(name: str) -> Callable[[Array, int], QuantizedTensor]:
    return lambda data, num_rows: read_lattice(name, GGML_FORMATS[name], data, num_rows)


# By ggml type: from a tensor's bytes and its number of rows.
BLOCKS: dict[str, Callable[[Array, int], QuantizedTensor]] = {
    "Q4_0": _one_level("Q4_0", 2, 16),
    "Q4_1": _one_level("Q4_1", 2, 2, 16),
    "Q5_0": _one_level("Q5_0", 2, 4, 16),
    "Q5_1": _one_level("Q5_1", 2, 2, 4, 16),
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _one_level("IQ4_NL", 2, 16),
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "Q1_0": _q1_0,
    **{name: _lattice(name) for name in GGML_FORMATS if is_lattice(name)},
}
