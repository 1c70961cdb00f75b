"""Intel's Advanced Matrix Extensions: sums of products by the tile (Intel SDM volume 1, chapter 18).

A tile is a register of up to 16 rows of 64 bytes; there are eight. One instruction multiplies 16 rows of 32 bfloat16 by as many
times 16 columns and adds up in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Value, local, name

ROWS, ROW_BYTES = 16, 64
MANY = 17  # rows from which products in tiles are the faster ones
TILES = range(8)


def configure(shapes: Mapping[int, tuple[int, int]] = dict.fromkeys(TILES, (ROWS, ROW_BYTES))) -> None:
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


def load(tile: int, source: Value, row_bytes: int = ROW_BYTES, *, streamed: bool = False) -> None:
    """Fills a tile from the place of `source`, an element of a buffer, rows `row_bytes` apart; `streamed` past L1, which keeps what it
    has."""
    _emit("tileloaddt164" if streamed else "tileloadd64", T.int8(tile), T.address_of(source), T.int64(row_bytes))


def clear(tile: int) -> None:
    """All zeros."""
    _emit("tilezero", T.int8(tile))


def multiply_bf16(sums: int, left: int, right: int) -> None:
    """sums (float32) += left · right, both bfloat16; `right` has pairs of its rows side by side, [k / 2, columns, 2]."""
    _emit("tdpbf16ps", T.int8(sums), T.int8(left), T.int8(right))


def to_bf16(low: Value, high: Value) -> Value:
    """Two vectors of 16 float32, one behind the other, rounded to bfloat16 (to nearest even): their bits, uint16."""
    return name(T.call_llvm_pure_intrin("uint16x32", "llvm.x86.avx512bf16.cvtne2ps2bf16.512", high, low))


def store(tile: int, target: Value, row_bytes: int = ROW_BYTES) -> None:
    """Writes a tile to the place of `target`, an element of a buffer, rows `row_bytes` apart."""
    _emit("tilestored64", T.int8(tile), T.address_of(target), T.int64(row_bytes))


def _emit(instruction: str, *arguments: Value) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{instruction}", *arguments))
