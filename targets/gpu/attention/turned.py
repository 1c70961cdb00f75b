"""Attention of several tokens where an instruction multiplies 16 rows with 16, as on AMD's GPUs: the rest of `prefill.py`, turned.

Keys are the first matrix and queries the second one, so that a lane's scores are of one query: its row. Of every 32 keys those that it has
are, rounded, what it has of the second matrix when values are summed, by parts of slices as everywhere; where lanes have whole rows, two
lanes give each other theirs. Values stand in shared memory by dimensions. Copies go through registers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import E4M3
from cupola.targets.attention_shape import AttentionShape
from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.attention.prefill import MOST_ROWS, ROWS, SLICE, Block, Rows, Tile, keys_of
from cupola.targets.gpu.emit import gpu, keep, registers, strided, synchronize
from cupola.targets.gpu.units import PARTS

_WORDS = 4  # in 16 bytes
_MOST_AHEAD = 128  # dimensions of values beside whose sums there are registers for tiles to come


@dataclass(frozen=True)
class TurnedBlock(Block):
    """As `Block`.

    Attributes:
        held: registers for what is on its way, of keys and of values, and for their scales.
    """

    held: dict[str, Buffer] = field(default_factory=dict, compare=False)

    @staticmethod
    def tile_of(kernel: AttentionShape) -> Tile:
        """As `Block`; 64 KiB hold it, and registers what lanes have of whole rows."""
        slices, keys = -(-kernel.key_dim // SLICE), SLICE if gpu().matrix.has_whole_rows else keys_of(kernel)
        rows = MOST_ROWS if max(kernel.key_dim, kernel.value_dim) <= 128 else MOST_ROWS // 2
        return Tile(rows, keys, slices * SLICE, (slices | 1) * SLICE, keys + 8, kernel.value_dim)

    def rows(self) -> TurnedRows:
        """As `Block`."""
        return TurnedRows(self)

    def _commit(self) -> None:
        """Nothing: registers need no groups."""

    def _wait(self, left: int, tile: Value) -> None:
        """As `Block`. Values are here already; scales of keys are read until then, and the next ones overwrite them."""
        if left == 0:
            self._put(0, tile)
        if left == 0 or self.scales:
            synchronize()

    def _leave_keys(self, tile: Value) -> None:
        """As `Block`, and that all values are here."""
        self._put(1, tile)
        synchronize()

    @property
    def _is_late(self) -> bool:
        """True if nothing is loaded ahead, because sums take the registers."""
        return gpu().matrix.has_whole_rows and self.t.kernel.value_dim > _MOST_AHEAD

    def run(self) -> None:
        """As `Block`."""
        for which in (0, 1):
            count = (1 if self._is_late else -(-self._num_pieces(which) // self.tile.threads)) * _WORDS
            self.held[f"words {which}"] = registers(count * (1 + which), "int32")
            if self.scales:
                self.held[f"scale {which}"] = registers()
        super().run()

    def _per_piece(self) -> int:
        """Numbers in 16 bytes."""
        return 8 if self._kind == "16" else 16

    @property
    def _kind(self) -> str:
        """Of numbers in pages, as functions that write them are called."""
        return {"int8": "codes", E4M3: "e4m3"}.get(self.t.kernel.kv_dtype, "16")

    def _num_pieces(self, which: int) -> int:
        """Of 16 bytes, of a tile of keys; of values by pairs."""
        if which == 0:
            return self.tile.keys * -(-self.tile.key_dim // self._per_piece())
        return self.tile.keys // 2 * (self.t.kernel.value_dim // self._per_piece())

    def _each_piece(self, which: int, do: Callable[[int, Value], None]) -> None:
        """Does something for each of the thread's pieces, by its number and its index in the tile."""
        count, threads = self._num_pieces(which), self.tile.threads
        for number, first in enumerate(range(0, count, threads)):
            if first + threads <= count:
                do(number, self.thread + T.int64(first))
            else:
                with T.If(self.thread < T.int64(count - first)), T.Then():
                    do(number, self.thread + T.int64(first))

    def _fetch(self, which: int, tile: Value) -> None:
        """As `Block`: loads it."""
        if not self._is_late:
            self._each_piece(which, lambda number, i: self._load(which, tile, number, i))

    def _load(self, which: int, tile: Value, number: int, i: Value) -> None:
        words, per_piece, half = self.held[f"words {which}"], self._per_piece(), self.tile.keys // 2
        dim, per_row = (self.t.kernel.key_dim, self.t.kernel.value_dim)[which], -(-self.tile.key_dim // per_piece)
        keys, piece = ([i // per_row], i % per_row) if which == 0 else ([i % half * 2, i % half * 2 + T.int64(1)], i // half)
        for j, key in enumerate(keys):
            place = self.share.place(tile * self.tile.keys + key)
            source = self.t.pools[which][(*place, T.min(piece, T.int64(dim // per_piece - 1)) * per_piece)]
            self.call("load_16", T.address_of(words[(number * len(keys) + j) * _WORDS]), T.address_of(source))

    def _fetch_scales(self, which: int, tile: Value) -> None:
        """As `Block`: loads them."""
        if self.scales:
            key = T.min(self.thread, T.int64(self.tile.keys - 1))
            T.buffer_store(self.held[f"scale {which}"], self.t.scales[which][self.share.place(tile * self.tile.keys + key)], [0])

    def _put(self, which: int, tile: Value) -> None:
        """Writes what was loaded of a tile."""

        if self._is_late:  # in a loop, since clang would ask for all at once
            with strided(self._num_pieces(which), self.thread, self.tile.threads) as i:
                self._load(which, tile, 0, i)
                self._store(which, 0, i)
        else:
            self._each_piece(which, lambda number, i: self._store(which, number, i))
        if self.scales:
            with T.If(self.thread < T.int64(self.tile.keys)), T.Then():
                T.buffer_store(self.scales[which], self.held[f"scale {which}"][0], [self.thread])

    def _store(self, which: int, number: int, i: Value) -> None:
        layout, per_piece, kind = self.tile, self._per_piece(), self._kind
        held = T.address_of(self.held[f"words {which}"][number * (1 + which) * _WORDS])
        if which == 0:
            per_row = -(-layout.key_dim // per_piece)
            to = self.memory[T.int64(layout.keys_at) + i // per_row * layout.row + i % per_row * per_piece]
            self.call(f"store_{kind}", T.address_of(to), held)
        else:
            half = layout.keys // 2
            to = self.memory[T.int64(layout.values_at) + i // half * per_piece * layout.value_row + i % half * 2]
            self.call(f"store_turned_{kind}", T.address_of(to), T.int32(layout.value_row), held)


class TurnedRows(Rows):
    """As `Rows`. A lane has one row, which is its place."""

    places: ClassVar[tuple[int, ...]] = (0,)
    over_row: ClassVar[str] = "of_row"

    @staticmethod
    def _key(part: Value, i: Value, step: int) -> Value:
        """Of a slice, the key of number i of a lane that is a row's `part`, in the scores of a step."""
        numbers = gpu().matrix.numbers
        if gpu().matrix.has_whole_rows:  # every other part of the slice
            return part * numbers + i + T.int64(2 * numbers * step)
        return part * (2 * numbers) + i + T.int64(numbers * step)

    def _words(self, row: Value, slice_index: int, at: int, stride: int) -> Buffer:
        """The lane's words of a slice of a row in shared memory."""
        parts = gpu().matrix.parts(self.lane)
        words, memory = registers(_WORDS * len(parts), "int32"), self.block.memory
        for i, part in enumerate(parts):
            source = memory[T.int64(at + slice_index * SLICE) + row * stride + part * 8]
            self.block.call("load_16", T.address_of(words[_WORDS * i]), T.address_of(source))
        return words

    def _multiply(self, sums: Buffer, index: int, a: Buffer, b: Buffer) -> None:
        """Adds the products of a slice."""
        self.block.call(f"multiply_slice_{self.block.dtype}", *(T.address_of(x[i]) for x, i in ((sums, index), (a, 0), (b, 0))))

    def scores(self) -> Buffer:
        """Products of queries and a tile of keys: for every slice of keys a lane's numbers of two steps."""
        tile, unit = self.block.tile, gpu().matrix
        found = registers(tile.keys // 16 * unit.numbers)
        for i in range(tile.keys // 16 * unit.numbers):
            T.buffer_store(found, T.float32(0), [i])
        place = unit.place(self.lane)
        rows = [keep(self._key(*unit.sum_place(place), step)) for step in (0, 1)]
        for part in range(tile.key_dim // SLICE):
            queries = self._words(self.warp * ROWS + place, part, 0, tile.row)
            for sixteen in range(tile.keys // 16):
                row = rows[sixteen % 2] + T.int64(sixteen // 2 * SLICE)
                keys = self._words(row, part, tile.keys_at, tile.row)
                self._multiply(found, sixteen * unit.numbers, keys, queries)
        return found

    def columns(self) -> Iterator[tuple[int, int, Value]]:
        """As `Rows`."""
        unit, part = gpu().matrix, gpu().matrix.part(self.lane)
        for sixteen, i in itertools.product(range(self.block.tile.keys // 16), range(unit.numbers)):
            yield sixteen * unit.numbers + i, 0, self._key(part, T.int64(i), sixteen % 2) + T.int64(sixteen // 2 * SLICE)

    def results(self, which: int) -> Iterator[tuple[int, Value]]:
        """As `Rows`."""
        unit, part = gpu().matrix, gpu().matrix.part(self.lane)
        for sixteen, i in itertools.product(range(self.block.t.kernel.value_dim // 16), range(unit.numbers)):
            yield sixteen * unit.numbers + i, part * unit.numbers + T.int64(16 * sixteen + i)

    def add_values(self, weights: Buffer) -> None:
        """Adds a tile of values by their weights."""
        block, kernel, tile, unit = self.block, self.block.t.kernel, self.block.tile, gpu().matrix
        part, number = unit.sum_place(unit.place(self.lane))
        row = keep(part * unit.numbers + number)
        for index in range(tile.keys // SLICE):
            own = registers(unit.numbers, "int32")
            for step, i in itertools.product((0, 1), range(0, unit.numbers, 2)):
                first = (2 * index + step) * unit.numbers + i
                pair = T.call_extern("int32", f"pair_{block.dtype}", weights[first], weights[first + 1])
                T.buffer_store(own, pair, [(step * unit.numbers + i) // 2])
            words = registers(PARTS * _WORDS, "int32") if unit.has_whole_rows else own
            if unit.has_whole_rows:
                block.call("gather_row", T.address_of(words[0]), T.address_of(own[0]))
            for sixteen in range(kernel.value_dim // 16):
                values = self._words(row + T.int64(16 * sixteen), index, tile.values_at, tile.value_row)
                self._multiply(self.sums, sixteen * unit.numbers, values, words)
