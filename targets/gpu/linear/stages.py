"""Tiles and rows of x on their way from memory to shared memory, ahead of what a block multiplies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.emit import call, gpu, registers, synchronize
from cupola.targets.gpu.linear.fragments import WARPS, Part, Sums, multiply
from cupola.targets.gpu.linear.tiles import COLUMNS, SLICE, Tiles
from cupola.targets.gpu.units import PARTS

Copy = Callable[..., None]  # of a place in shared memory, a buffer, and an index of it


@dataclass(frozen=True)
class Stage:
    """A chunk of 64 columns in shared memory: rows of x, then tiles, their scales and mins. Of a row the 16 bytes at an index lie
    at another one if the row is odd, so that lanes read from different banks. Multiplied by warps, each for itself.

    Attributes:
        rounded: x in 16 bits, as `rounded_shape` has it.
        tiles: one above the other.
        rows: of x.
        count: of stages, that are under way or are multiplied.
    """

    weight: Tiles
    rounded: Buffer
    tiles: int
    rows: int

    count: ClassVar[int] = 3

    @staticmethod
    def rounded_shape(count: Value, num_chunks: int) -> tuple[Value | int, ...]:
        """The words of x in 16 bits: of each row, two columns a word."""
        return (count, num_chunks * COLUMNS // 2)

    @staticmethod
    def store_rounded(rounded: Buffer, row: Value, chunk: Value, piece: int, part: Value, words: Buffer, start: int) -> None:
        """Writes four words, of a part of a slice."""
        first = chunk * (COLUMNS // 2) + T.int64(piece * SLICE // 2) + part * 4
        T.buffer_store(rounded, words[T.ramp(start, 1, 4)], [row, T.ramp(first, 1, 4)])

    @property
    def _tiles_at(self) -> int:
        return self.rows * COLUMNS // 2

    @property
    def _scales_at(self) -> int:
        return self._tiles_at + self.tiles * self._tile_loads * 4

    @property
    def _tile_loads(self) -> int:
        """Pieces of 16 bytes that a tile has."""
        return self.weight.loads * PARTS * gpu().matrix.rows

    @property
    def words(self) -> int:
        """Words of 4 bytes."""
        held = sum(held is not None for held in (self.weight.scales, self.weight.mins))
        return self._scales_at + held * self.tiles * 2 * gpu().matrix.rows

    @property
    def shared_words(self) -> int:
        """Words of all stages, and of what lies behind them."""
        return self.count * self.words

    def _start(self, chunk: Value) -> Value:
        return chunk % self.count * self.words

    def _existing(self, tile: Value) -> Value:
        """The tile, or the last one in place of one that there is not."""
        return T.min(tile, T.int64(int(self.weight.words.shape[0]) - 1))

    def begin(self, memory: Buffer, thread: Value) -> None:
        """Makes ready for copies."""

    def fetch(self, memory: Buffer, chunk: Value, end: int, tile: Value, row: Value, count: Value, thread: Value) -> None:
        """Asks for a chunk, if it is before `end`, of the tiles and rows from `tile` and `row` on; where there are none, the last one."""
        with T.If(chunk < T.int64(end)), T.Then():
            self._fetch(memory, chunk, tile, row, count, thread)
        call("commit_copies")

    def wait(self, memory: Buffer, chunk: Value, fetch: Callable[[], None]) -> None:
        """Waits until a chunk is here and nobody needs the one before, whose place `fetch` fills again."""
        call(f"wait_for_copies<{self.count - 2}>")
        synchronize()
        fetch()

    def multiply(self, memory: Buffer, chunk: Value, sums: Sums, pair: Sequence[Part], row: Value, lane: Value) -> None:
        """Adds the products of a unit and the rows of x from `row` on."""
        rows = gpu().matrix.rows
        for piece in (0, 1):
            xs = [self._row(memory, chunk, row + T.int64(group * rows), piece, lane) for group in range(sums.groups)]
            multiply(sums, pair, piece, xs)

    def _fetch(self, memory: Buffer, chunk: Value, tile: Value, row: Value, count: Value, thread: Value) -> None:
        def copy(place: Value, source: Buffer, *index: Value) -> None:
            call("copy_16", T.address_of(memory[place]), T.address_of(source[index]))

        self._each(chunk, tile, row, count, thread, copy)

    def _each(self, chunk: Value, tile: Value, row: Value, count: Value, thread: Value, do: Copy) -> None:
        """Does something for each 16 bytes of a chunk that the thread takes: their place, and where they come from."""
        weight, start, threads, unit = self.weight, self._start(chunk), WARPS * gpu().matrix.lanes, gpu().matrix

        def each_of(pieces: int, do_for: Callable[[Value], None]) -> None:
            for first in range(0, pieces, threads):
                if first + threads <= pieces:
                    do_for(thread + T.int64(first))
                else:
                    with T.If(thread < T.int64(pieces - first)), T.Then():
                        do_for(thread + T.int64(first))

        per_tile, lanes = self._tile_loads, PARTS * unit.rows

        def of_tile(i: Value) -> None:
            index = self._existing(tile + i // per_tile), chunk, i % per_tile // lanes, i % lanes, T.int64(0)
            do(start + T.int64(self._tiles_at) + i * 4, weight.words, *index)

        each_of(self.tiles * per_tile, of_tile)
        per_piece = unit.rows // 4
        for which, held in enumerate((weight.scales, weight.mins)):
            if held is not None:
                i = thread - T.int64(which * self.tiles * 2 * per_piece)
                piece, quarter = i // per_piece % 2, i % per_piece * 4
                with T.If(tvm.tirx.all(i >= T.int64(0), i < T.int64(self.tiles * 2 * per_piece))), T.Then():
                    group = (2 * chunk + piece) // T.int64(weight.group_size // SLICE)
                    place = start + T.int64(self._scales_at) + thread * 4
                    do(place, held, self._existing(tile + i // (2 * per_piece)), group, quarter)
        pieces = COLUMNS // 8  # of 16 bytes, in a row

        def of_row(i: Value) -> None:
            place = start + (i // pieces * pieces + self._turned(i % pieces, i // pieces)) * 4
            do(place, self.rounded, T.min(row + i // pieces, count - T.int64(1)), chunk * (COLUMNS // 2) + i % pieces * 4)

        each_of(self.rows * pieces, of_row)

    def read(self, memory: Buffer, chunk: Value, part: Part, tile: Value, lane: Value) -> None:
        """A lane's part of a tile."""
        start, loads, unit = self._start(chunk), self.weight.loads, gpu().matrix
        for which, at in enumerate(unit.stored_lanes(lane)):
            for i in range(loads):
                place = start + T.int64(self._tiles_at) + ((tile * loads + T.int64(i)) * (PARTS * unit.rows) + at) * 4
                T.buffer_store(part.words, memory[T.ramp(place, 1, 4)], [T.ramp(4 * (loads * which + i), 1, 4)])
        for which, into in enumerate((part.scales, part.mins)):
            for piece in (0, 1):
                if into is not None:
                    first = T.int64(self._scales_at + which * self.tiles * 2 * unit.rows)
                    place = start + first + (tile * 2 + T.int64(piece)) * unit.rows + unit.place(lane)
                    T.buffer_store(into, memory[place], [piece])

    def _row(self, memory: Buffer, chunk: Value, first: Value, piece: int, lane: Value) -> Buffer:
        """The lane's words of a slice of its row, of those from `first` on."""
        parts, row = gpu().matrix.parts(lane), first + gpu().matrix.place(lane)
        words = registers(4 * len(parts), "int32")
        for i, part in enumerate(parts):
            place = self._start(chunk) + (row * (COLUMNS // 8) + self._turned(part + T.int64(4 * piece), row)) * 4
            T.buffer_store(words, memory[T.ramp(place, 1, 4)], [T.ramp(4 * i, 1, 4)])
        return words

    @staticmethod
    def _turned(piece: Value, row: Value) -> Value:
        return (piece + row % 2 * 4) % 8
