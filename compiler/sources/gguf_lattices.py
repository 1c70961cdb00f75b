"""GGUF's types that store eight or four numbers by their place in a lattice: IQ1, IQ2 and IQ3.

The lattices are gguf-py's: with a super scale of 1 its dequantization gives scale code · number exactly. Divided by the scale codes,
odd numbers from 1 to 31, those are numbers of a small table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cupola.compiler.sources.base import Array
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES
from cupola.targets.formats.tensor import QuantizedTensor

_CHUNK = 1 << 12  # blocks that are in float32 at a time
_ONE = np.array([1], np.float16).view(np.uint8)


def is_lattice(name: str) -> bool:
    """True of a type that this module reads."""
    return name in _SCALES


def read_lattice(name: str, format: WeightFormat, data: Array, num_rows: int) -> QuantizedTensor:
    """A tensor's blocks in the format of their type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType[name]
    blocks = data.reshape(-1, GGML_QUANT_SIZES[kind][1])
    super_scales = (_scattered(blocks) if name == "IQ1_M" else np.ascontiguousarray(blocks[:, :2])).view(np.float16)
    scales = 2 * _SCALES[name](blocks).astype(np.int8) + 1
    pieces = [_codes(kind, format, blocks[i : i + _CHUNK], scales[i : i + _CHUNK]) for i in range(0, len(blocks), _CHUNK)]
    parts = (np.concatenate(pieces), scales, super_scales)
    return QuantizedTensor.of(format, *(part.reshape(num_rows, -1) for part in parts))


def _codes(kind: int, format: WeightFormat, blocks: Array, scales: Array) -> Array:
    """The places in the format's table of the blocks' numbers: [blocks, 256]."""
    from gguf.quants import IQ1_M, dequantize

    of_one = blocks.copy()
    if kind == IQ1_M.qtype:
        high = of_one[:, -7::2]  # of four words of 16 bits, whose highest four are the super scale's
        high &= 15
        high[:, 2:] |= np.array([0xC0, 0x30], np.uint8)  # 1 is 0x3c00
    else:
        of_one[:, :2] = _ONE
    numbers = dequantize(of_one, kind).reshape(*scales.shape, -1) / scales[..., None].astype(np.float32)
    entries = np.array(TABLES[format.table], np.float32)
    order = np.argsort(entries, kind="stable")
    codes = order[np.searchsorted(entries[order], numbers)].astype(np.uint8)
    assert np.array_equal(entries[codes], numbers), kind
    return codes.reshape(len(blocks), -1)


def _scattered(blocks: Array) -> Array:
    """IQ1_M's super scales: the highest four bits of four words, the last word's the highest. [blocks, 2] bytes."""
    words = np.ascontiguousarray(blocks[:, -8:]).view(np.uint16) >> 12
    return (words << np.arange(0, 16, 4, dtype=np.uint16)).sum(axis=1, dtype=np.uint16)[:, None].view(np.uint8)


def _words(blocks: Array, begin: int, end: int, dtype: str) -> Array:
    return np.ascontiguousarray(blocks[:, begin:end]).view(dtype)


def _nibbles(blocks: Array, begin: int) -> Array:
    packed = blocks[:, begin:, None]
    return np.concatenate((packed & 15, packed >> 4), axis=2).reshape(len(blocks), -1)


# By ggml type: what scale codes are made of, twice which and one they are.
_SCALES: Mapping[str, Callable[[Array], Array]] = {
    "IQ2_XXS": lambda blocks: _words(blocks, 2, 66, "<u4")[:, 1::2] >> 28,
    "IQ2_XS": lambda blocks: _nibbles(blocks, 66),
    "IQ2_S": lambda blocks: _nibbles(blocks, 74),
    "IQ3_XXS": lambda blocks: _words(blocks, 66, 98, "<u4") >> 28,
    "IQ3_S": lambda blocks: _nibbles(blocks, 106),
    "IQ1_S": lambda blocks: _words(blocks, 34, 50, "<u2") >> 12 & 7,
    "IQ1_M": lambda blocks: (_words(blocks, 48, 56, "<u2")[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(len(blocks), 16),
}
