"""Tiles and rows of x on their way from memory to shared memory, ahead of what a block multiplies."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.emit import WARP, registers
from cupola.targets.gpu.fragments import WARPS, Part
from cupola.targets.gpu.tiles import COLUMNS, SLICE, Tiles

STAGES = 3  # that are under way, or are multiplied


@dataclass(frozen=True)
class Stage:
    """A chunk of 64 columns in shared memory: tiles, their scales and mins, then rows of x. Of a row the 16 bytes at an index lie
    at another one if the row is odd, so that lanes read from different banks.

    Attributes:
        tiles: one above the other.
        rows: of x.
    """

    weight: Tiles
    rounded: Buffer
    tiles: int
    rows: int

    @property
    def _scales_at(self) -> int:
        return self.tiles * self.weight.loads * WARP * 4

    @property
    def _rows_at(self) -> int:
        return self._scales_at + sum(held is not None for held in (self.weight.scales, self.weight.mins)) * self.tiles * 2 * 8

    @property
    def words(self) -> int:
        """Words of 4 bytes."""
        return self._rows_at + self.rows * COLUMNS // 2

    def _start(self, chunk: Value) -> Value:
        return chunk % STAGES * self.words

    def fetch(self, memory: Buffer, chunk: Value, tile: Value, row: Value, count: Value, thread: Value) -> None:
        """Asks for a chunk of the tiles and rows from `tile` and `row` on; instead of those that there are not, for the last one."""
        weight, start, threads = self.weight, self._start(chunk), WARPS * WARP

        def copy(place: Value, source: Buffer, *index: Value) -> None:
            T.evaluate(T.call_extern("int32", "copy_16", T.address_of(memory[place]), T.address_of(source[index])))

        def the_tile(i: Value) -> Value:
            return T.min(tile + i, T.int64(int(weight.words.shape[0]) - 1))

        per_tile = weight.loads * WARP
        for first in range(0, self.tiles * per_tile, threads):
            i = thread + T.int64(first)
            copy(start + i * 4, weight.words, the_tile(i // per_tile), chunk, i % per_tile // WARP, i % WARP, T.int64(0))
        for which, held in enumerate((weight.scales, weight.mins)):
            if held is not None:
                i = thread - T.int64(which * self.tiles * 4)
                piece, half = i // 2 % 2, i % 2 * 4
                with T.If(tvm.tirx.all(i >= T.int64(0), i < T.int64(self.tiles * 4))), T.Then():
                    group = (2 * chunk + piece) // T.int64(weight.group_size // SLICE)
                    copy(start + T.int64(self._scales_at) + thread * 4, held, the_tile(i // 4), group, half)
        pieces = COLUMNS // 8  # of 16 bytes, in a row
        for first in range(0, self.rows * pieces, threads):
            i = thread + T.int64(first)
            place = start + T.int64(self._rows_at) + (i // pieces * pieces + self._turned(i % pieces, i // pieces)) * 4
            copy(place, self.rounded, T.min(row + i // pieces, count - T.int64(1)), chunk * (COLUMNS // 2) + i % pieces * 4)

    def read(self, memory: Buffer, chunk: Value, part: Part, tile: Value, lane: Value) -> None:
        """A lane's part of a tile."""
        start, loads = self._start(chunk), self.weight.loads
        for i in range(loads):
            place = start + ((tile * loads + T.int64(i)) * WARP + lane) * 4
            T.buffer_store(part.words, memory[T.ramp(place, 1, 4)], [T.ramp(4 * i, 1, 4)])
        for which, into in enumerate((part.scales, part.mins)):
            for piece in (0, 1):
                if into is not None:
                    place = start + T.int64(self._scales_at + which * self.tiles * 16) + (tile * 2 + T.int64(piece)) * 8 + lane // 4
                    T.buffer_store(into, memory[place], [piece])

    def row(self, memory: Buffer, chunk: Value, first: Value, piece: int, lane: Value) -> Buffer:
        """The lane's words of a slice of its row, of the eight from `first` on."""
        words, row = registers(4, "int32"), first + lane // 4
        place = self._start(chunk) + T.int64(self._rows_at) + (row * (COLUMNS // 8) + self._turned(lane % 4 + T.int64(4 * piece), row)) * 4
        T.buffer_store(words, memory[T.ramp(place, 1, 4)], [T.ramp(0, 1, 4)])
        return words

    @staticmethod
    def _turned(piece: Value, row: Value) -> Value:
        return (piece + row % 2 * 4) % 8
