"""Matrix products of int8 by an instruction that multiplies two rows by two columns, eight inputs of each: Arm's SMMLA.

`sum[2 i + j] += Σ x[8 i + k] · w[8 j + k]`, k from 0 to 7, of int8x16 and int32x4 (Arm Architecture Reference Manual, C7.2, "SMMLA"). So
rows lie in pairs, columns do so in unpacked panels, and a vector of sums has two columns of two rows until a tile is done. Sums of integers
are exact, and each is scaled and added up as by dot products of single rows: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Register, Simd, Value, name
from cupola.targets.cpu.linear.int8_rows import Int8Rows
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.quantized_packing import QUADS

if TYPE_CHECKING:
    from cupola.targets.cpu.linear.panels import UnpackedPanel

LANES = 4
PAIR_TILES = (8, 4, 2)  # rows; each with so many columns that 8 vectors have its sums, as integers and as floats


@dataclass(frozen=True)
class PairedRows(Int8Rows):
    """Quantized rows two by two: int32 [places, words], a place for each group of each pair of rows.

    Two quads of the first row, the same two of the second, the next two of the first, …; each of the other words of `Int8Rows` is a
    vector, twice the first row's and twice the second's.
    """

    @staticmethod
    def shape(num_rows: Value | int, groups: int, num_others: int) -> tuple[Value | int, int]:
        return (num_rows + 1) // 2 * groups, 2 * QUADS + LANES * num_others

    @staticmethod
    def padded(num_rows: Value) -> Value:
        return name((num_rows + 1) // 2 * 2)

    def place(self, row: Value, group: Value | int) -> Value:
        return name(row // 2 * self.groups + group)

    def quads(self, place: Value, pair: int) -> Value:
        """Quads 2 · pair and the next of both rows, int8x16."""
        return name(T.reinterpret("int8x16", self.words[place, T.ramp(LANES * pair, 1, LANES)]))

    def vector(self, place: Value, at: int) -> Value:
        """Word `at` of `Int8Rows` for both rows, int32x4."""
        return name(self.words[place, T.ramp(self._vector(at), 1, LANES)])

    def floats(self, place: Value, at: int) -> Value:
        """The same for a word that is a float32."""
        return name(T.reinterpret("float32x4", self.vector(place, at)))

    @staticmethod
    def _vector(at: int) -> int:
        return 2 * QUADS + LANES * (at - QUADS)

    def _put_quads(self, place: Value, row: Value, first: int, packed: Value) -> None:
        T.buffer_store(self.words, packed, [place, first // 2 * LANES + row % 2 * 2 + first % 2])

    def _put(self, place: Value, row: Value, at: int, word: Value) -> None:
        for twice in range(2):
            T.buffer_store(self.words, word, [place, self._vector(at) + row % 2 * 2 + twice])


def by_pairs(quads: Sequence[Value]) -> list[Value]:
    """A slice of 4 columns, of which each int8x16 has a quad, with two columns of two quads in each."""
    words = [name(T.reinterpret("int32x4", quad)) for quad in quads]
    halves = [(first, second, at) for first, second in zip(words[::2], words[1::2], strict=True) for at in (0, 2)]
    return [name(T.reinterpret("int8x16", T.Shuffle([a, b], [at, at + 4, at + 1, at + 5]))) for a, b, at in halves]


@dataclass(frozen=True)
class PairTile:
    """Some rows of `products` [rows, 32], to which those of unpacked slices are added."""

    simd: Simd
    rows: PairedRows
    panel: UnpackedPanel
    products: Buffer

    def add(self, row: Value, size: int, start: Value, num_slices: Value, r: Value, beside: Callable[[Value], None]) -> None:
        """Adds the products of `size` rows from `row` on and the panel's slices, of which the first is number `start` of the rows', to
        rows `r`… of `products`; `beside` each slice something else is done."""
        vectors = PAIR_TILES[0] // size
        with T.serial(PANEL // LANES // vectors) as part:
            columns = [name((part * vectors + vector) * LANES) for vector in range(vectors)]
            sums = [[half for column in columns for half in self._load(r + i, column)] for i in range(0, size, 2)]
            with T.serial(num_slices) as at:
                beside(at)
                places = [self.rows.place(row + i, start + at) for i in range(0, size, 2)]
                self._add_slice(places, at, columns, sums)
            for i, pairs in enumerate(sums):
                for vector, column in enumerate(columns):
                    self._store(r + 2 * i, column, pairs[2 * vector].get(), pairs[2 * vector + 1].get())

    def _add_slice(self, places: list[Value], at: Value, columns: list[Value], sums: list[list[Register]]) -> None:
        rows, parts = self.rows, self.rows.parts
        weights = [self.panel.quads(at, column) for column in columns]
        for part in range(parts):
            starts = [rows.vector(place, QUADS + 1 + part) if rows.zero else 0 for place in places]
            integers = [[Register(LANES, start, "int32") for _ in pairs] for start, pairs in zip(starts, sums, strict=True)]
            for pair in range(part * QUADS // 2 // parts, (part + 1) * QUADS // 2 // parts):
                for i, place in enumerate(places):
                    x = rows.quads(place, pair)
                    for half, total in enumerate(integers[i]):
                        total.set(_smmla(total.get(), x, weights[half // 2][2 * pair + half % 2]))
            scales = [half for column in columns for half in _halves(self.panel.scale(at, column, part))]
            mins = [half for column in columns for half in _halves(self.panel.min(at, column, part))]
            for i, place in enumerate(places):
                scale = rows.floats(place, QUADS)
                x_sum = rows.floats(place, rows.sum_at + part) if rows.has_mins else None
                for half, total in enumerate(sums[i]):
                    exact = name(T.cast(integers[i][half].get(), "float32x4") * scales[half])
                    total.set(self.simd.fma(exact, scale, total.get()))
                    if x_sum is not None:
                        total.set(self.simd.fma(mins[half], x_sum, total.get()))

    def _load(self, r: Value, column: Value) -> list[Register]:
        a, b = (self.simd.load(self.products, (r + i, column)) for i in range(2))
        return [Register(LANES, T.Shuffle([a, b], [at, at + 1, at + 4, at + 5])) for at in (0, 2)]

    def _store(self, r: Value, column: Value, low: Value, high: Value) -> None:
        low, high = name(low), name(high)
        for i in range(2):
            self.simd.store(self.products, name(T.Shuffle([low, high], [2 * i, 2 * i + 1, 2 * i + 4, 2 * i + 5])), (r + i, column))


def _halves(columns: Value | None) -> list[Value]:
    """Of four columns' numbers, the first two and the last two, for both rows each."""
    return [] if columns is None else [name(T.Shuffle([columns], [at, at + 1, at, at + 1])) for at in (0, 2)]


def _smmla(total: Value, x: Value, weights: Value) -> Value:
    return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", total, x, weights)
