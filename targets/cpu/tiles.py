"""Intel's Advanced Matrix Extensions: sums of products of int8 by the tile (Intel SDM volume 1, chapter 18).

One instruction multiplies 16 rows of four times up to 16 int8 by as many times 16 columns and adds up in int32. Here a tile has
a group's 32 inputs, since every group has a scale of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm.tirx.script import builder as T

from cupola.targets.cpu.quantized_packing import COLUMNS, QUADS
from cupola.targets.cpu.simd import Value, local, name
from cupola.targets.ops import GROUP

ROWS = 16
INPUTS = 0  # tile registers
PRODUCTS = ((1, 2), (3, 4))  # sums and weights, for either half of a panel
_SUMS, _WEIGHTS = (ROWS, 4 * COLUMNS), (QUADS, 4 * COLUMNS)  # rows, bytes a row
SHAPES = {INPUTS: (ROWS, GROUP), 1: _SUMS, 2: _WEIGHTS, 3: _SUMS, 4: _WEIGHTS}


def configure(shapes: Mapping[int, tuple[int, int]] = SHAPES) -> None:
    """Gives the tile registers of this thread their shapes, (rows, bytes a row) each; their contents are lost."""
    configuration = local(64, "uint8")
    T.buffer_store(configuration, T.broadcast(T.uint8(0), 64), [T.ramp(0, 1, 64)])
    T.buffer_store(configuration, T.uint8(1), [0])  # palette
    for tile, (rows, num_bytes) in shapes.items():
        T.buffer_store(configuration, T.uint8(num_bytes), [16 + 2 * tile])
        T.buffer_store(configuration, T.uint8(rows), [48 + tile])
    _emit("ldtilecfg", T.address_of(configuration[0]))


def release() -> None:
    """Gives the registers back, so that the system need not save them."""
    _emit("tilerelease")


def load(tile: int, source: Value, row_bytes: int) -> None:
    """Fills a tile from the place of `source`, an element of a buffer, rows `row_bytes` apart."""
    _emit("tileloadd64", T.int8(tile), T.address_of(source), T.int64(row_bytes))


def clear(tile: int) -> None:
    """All zeros."""
    _emit("tilezero", T.int8(tile))


def multiply(sums: int, weights: int) -> None:
    """sums += INPUTS · weights, both signed."""
    _emit("tdpbssd", T.int8(sums), T.int8(INPUTS), T.int8(weights))


def multiply_bf16(sums: int, left: int, right: int) -> None:
    """sums (float32) += left · right, both bfloat16; `right` has pairs of its rows side by side, [k / 2, columns, 2]."""
    _emit("tdpbf16ps", T.int8(sums), T.int8(left), T.int8(right))


def to_bf16(low: Value, high: Value) -> Value:
    """Two vectors of 16 float32, one behind the other, rounded to bfloat16 (to nearest even)."""
    return name(T.call_llvm_pure_intrin("bfloat16x32", "llvm.x86.avx512bf16.cvtne2ps2bf16.512", high, low))


def store(tile: int, target: Value, row_bytes: int = 4 * COLUMNS) -> None:
    """Writes a tile to the place of `target`, an element of a buffer, rows `row_bytes` apart."""
    _emit("tilestored64", T.int8(tile), T.address_of(target), T.int64(row_bytes))


def _emit(instruction: str, *arguments: Value) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{instruction}", *arguments))
