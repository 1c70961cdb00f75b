"""Tiles and rows of x on their way from memory to shared memory, ahead of what a block multiplies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.emit import WARP, call, registers, synchronize
from cupola.targets.gpu.linear.fragments import GROUP, WARPS, Part, Sums, multiply
from cupola.targets.gpu.linear.tiles import COLUMNS, SLICE, Tiles

STAGES = 3  # that are under way, or are multiplied


@dataclass(frozen=True)
class Stage:
    """A chunk of 64 columns in shared memory: rows of x, then tiles, their scales and mins. Of a row the 16 bytes at an index lie
    at another one if the row is odd, so that lanes read from different banks. Multiplied by warps, each for itself.

    Attributes:
        rounded: x in 16 bits, as `rounded_shape` has it.
        tiles: one above the other.
        rows: of x.
    """

    weight: Tiles
    rounded: Buffer
    tiles: int
    rows: int

    @staticmethod
    def rounded_shape(count: Value, num_chunks: int) -> tuple[Value | int, ...]:
        """The words of x in 16 bits: of each row, two columns a word."""
        return (count, num_chunks * COLUMNS // 2)

    @staticmethod
    def store_rounded(rounded: Buffer, row: Value, chunk: Value, piece: int, part: Value, words: Buffer) -> None:
        """Writes the four words of a lane's part of a slice."""
        first = chunk * (COLUMNS // 2) + T.int64(piece * SLICE // 2) + part * 4
        T.buffer_store(rounded, words[T.ramp(0, 1, 4)], [row, T.ramp(first, 1, 4)])

    @property
    def _tiles_at(self) -> int:
        return self.rows * COLUMNS // 2

    @property
    def _scales_at(self) -> int:
        return self._tiles_at + self.tiles * self.weight.loads * WARP * 4

    @property
    def words(self) -> int:
        """Words of 4 bytes."""
        return self._scales_at + sum(held is not None for held in (self.weight.scales, self.weight.mins)) * self.tiles * 2 * 8

    @property
    def shared_words(self) -> int:
        """Words of all stages, and of what lies behind them."""
        return STAGES * self.words

    def _start(self, chunk: Value) -> Value:
        return chunk % STAGES * self.words

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
        call(f"wait_for_copies<{STAGES - 2}>")
        synchronize()
        fetch()

    def multiply(self, memory: Buffer, chunk: Value, sums: Sums, pair: Sequence[Part], row: Value, lane: Value) -> None:
        """Adds the products of a unit and the rows of x from `row` on."""
        for piece in (0, 1):
            xs = [self._row(memory, chunk, row + T.int64(group * GROUP), piece, lane) for group in range(sums.groups)]
            multiply(sums, pair, piece, xs)

    def _fetch(self, memory: Buffer, chunk: Value, tile: Value, row: Value, count: Value, thread: Value) -> None:
        weight, start, threads = self.weight, self._start(chunk), WARPS * WARP

        def copy(place: Value, source: Buffer, *index: Value) -> None:
            call("copy_16", T.address_of(memory[place]), T.address_of(source[index]))

        per_tile = weight.loads * WARP
        for first in range(0, self.tiles * per_tile, threads):
            i = thread + T.int64(first)
            copy(
                start + T.int64(self._tiles_at) + i * 4,
                weight.words,
                self._existing(tile + i // per_tile),
                chunk,
                i % per_tile // WARP,
                i % WARP,
                T.int64(0),
            )
        for which, held in enumerate((weight.scales, weight.mins)):
            if held is not None:
                i = thread - T.int64(which * self.tiles * 4)
                piece, half = i // 2 % 2, i % 2 * 4
                with T.If(tvm.tirx.all(i >= T.int64(0), i < T.int64(self.tiles * 4))), T.Then():
                    group = (2 * chunk + piece) // T.int64(weight.group_size // SLICE)
                    copy(start + T.int64(self._scales_at) + thread * 4, held, self._existing(tile + i // 4), group, half)
        pieces = COLUMNS // 8  # of 16 bytes, in a row
        for first in range(0, self.rows * pieces, threads):
            i = thread + T.int64(first)
            place = start + (i // pieces * pieces + self._turned(i % pieces, i // pieces)) * 4
            copy(place, self.rounded, T.min(row + i // pieces, count - T.int64(1)), chunk * (COLUMNS // 2) + i % pieces * 4)

    def read(self, memory: Buffer, chunk: Value, part: Part, tile: Value, lane: Value) -> None:
        """A lane's part of a tile."""
        start, loads = self._start(chunk), self.weight.loads
        for i in range(loads):
            place = start + T.int64(self._tiles_at) + ((tile * loads + T.int64(i)) * WARP + lane) * 4
            T.buffer_store(part.words, memory[T.ramp(place, 1, 4)], [T.ramp(4 * i, 1, 4)])
        for which, into in enumerate((part.scales, part.mins)):
            for piece in (0, 1):
                if into is not None:
                    place = start + T.int64(self._scales_at + which * self.tiles * 16) + (tile * 2 + T.int64(piece)) * 8 + lane // 4
                    T.buffer_store(into, memory[place], [piece])

    def _row(self, memory: Buffer, chunk: Value, first: Value, piece: int, lane: Value) -> Buffer:
        """The lane's words of a slice of its row, of the eight from `first` on."""
        words, row = registers(4, "int32"), first + lane // 4
        place = self._start(chunk) + (row * (COLUMNS // 8) + self._turned(lane % 4 + T.int64(4 * piece), row)) * 4
        T.buffer_store(words, memory[T.ramp(place, 1, 4)], [T.ramp(0, 1, 4)])
        return words

    @staticmethod
    def _turned(piece: Value, row: Value) -> Value:
        return (piece + row % 2 * 4) % 8
