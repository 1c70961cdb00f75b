"""Paged attention of sequences that bring several tokens, by matrix units and online softmax (FlashAttention-2, arXiv:2307.08691).

A block has 64 rows of a sequence, which are its tokens and the query heads of a K/V head, and takes keys in tiles from multiples of the
tile's size on. Tiles come by copies that run ahead, through the table of blocks: the next keys while values are multiplied, and the next
values while keys are. Queries and weights are rounded to 16 bits, sums are in float32. Keys that a row does not see change none of its
bits, so a row has the same ones whatever stands beside it, and however a prompt is cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import tvm
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import E4M3
from cupola.targets.attention_shape import AttentionShape
from cupola.targets.emit import Buffer, Value
from cupola.targets.generic.attention import AttentionTensors
from cupola.targets.gpu.attention.plain import LOWEST, Head
from cupola.targets.gpu.attention.share import Share, first_seen, most_shares, share_of
from cupola.targets.gpu.emit import WARP, blocks, gpu, keep, registers, shared, store, synchronize

ROWS = 16  # of a warp
MOST_ROWS = 64  # of a block
SLICE = 32  # dimensions of a key that a lane's 16 bytes and those of its three neighbours are
_MOST_DIM = 256  # of a head, for registers


def multiplies(kernel: AttentionShape) -> bool:
    """True if there are matrix units for pages of the type, and registers for a head."""
    fits = all(dim % 16 == 0 and dim <= _MOST_DIM for dim in (kernel.key_dim, kernel.value_dim))
    return kernel.kv_dtype != "float32" and fits


def attend_together(t: AttentionTensors, block_type: type[Block]) -> None:
    """Writes the results of sequences that bring several tokens, whose keys and values stand in pages."""
    tile = block_type.tile_of(t.kernel)
    with blocks(most_shares(t, tile.rows), t.kernel.num_kv_heads, threads=tile.threads) as (index, group, thread):
        memory = T.alloc_buffer((tile.halves,), "int16", scope="shared.dyn")
        scales = [shared(tile.keys) for _ in t.scales]
        with share_of(t, index, group, tile.rows) as share:
            block_type(t, tile, memory, scales, share, thread).run()


def keys_of(kernel: AttentionShape) -> int:
    """Keys of a tile."""
    return 64 if max(kernel.key_dim, kernel.value_dim) <= 128 else 32


@dataclass(frozen=True)
class Tile:
    """A block's shared memory, in halves: queries, then a tile of keys, then one of values.

    Attributes:
        rows: of the block.
        keys: of a tile.
        key_dim: of the keys, to whole slices.
        row: halves from a query or key to the next: an odd multiple of 64 bytes, so that lanes read from different banks.
        value_row: the same of values: 16 bytes more than a multiple of as much as lanes read at once.
        value_rows: of a tile of values.
    """

    rows: int
    keys: int
    key_dim: int
    row: int
    value_row: int
    value_rows: int

    @property
    def threads(self) -> int:
        """Of the block."""
        return self.rows // ROWS * gpu().matrix.lanes

    @property
    def keys_at(self) -> int:
        """The first key."""
        return self.rows * self.row

    @property
    def values_at(self) -> int:
        """The first value."""
        return self.keys_at + self.keys * self.row

    @property
    def halves(self) -> int:
        """All of it."""
        return self.values_at + self.value_rows * self.value_row


@dataclass(frozen=True)
class Block:
    """A block's part of the work."""

    t: AttentionTensors
    tile: Tile
    memory: Buffer
    scales: list[Buffer]
    share: Share
    thread: Value

    @staticmethod
    def tile_of(kernel: AttentionShape) -> Tile:
        """The memory of a kernel's blocks."""
        slices, keys = -(-kernel.key_dim // SLICE), keys_of(kernel)
        return Tile(MOST_ROWS, keys, slices * SLICE, (slices | 1) * SLICE, -(-kernel.value_dim // 64) * 64 + 8, keys)

    @property
    def lane(self) -> Value:
        """Of the warp."""
        return self.thread % gpu().matrix.lanes

    @property
    def warp(self) -> Value:
        """Of the block."""
        return self.thread // gpu().matrix.lanes

    @property
    def dtype(self) -> str:
        """The type that is multiplied: that of the pages, float16 for E4M3 and bfloat16 for codes, of which they hold all."""
        return "float16" if self.t.kernel.kv_dtype in ("float16", E4M3) else "bfloat16"

    def call(self, function: str, *arguments: Value) -> None:
        """A function of `matrix.cuh`."""
        T.evaluate(T.call_extern("int32", function, *arguments))

    def rows(self) -> Rows:
        """The warp's."""
        return Rows(self)

    def run(self) -> None:
        """All of it."""
        rows, size = self.rows(), self.tile.keys
        begin = keep(self.share.begin // size)
        self._fetch(0, begin)
        self._commit()
        self._fetch_scales(0, begin)
        self._read_queries()
        with T.serial(self.share.end // size + T.int64(1) - begin) as i:
            now = keep(begin + T.cast(i, "int64"))
            is_next = (now + T.int64(1)) * size <= self.share.end
            self._wait(0, now)  # for keys, and for who reads values
            self._fetch(1, now)
            self._commit()
            self._fetch_scales(1, now)
            scores = rows.scores()
            self._leave_keys(now)
            with T.If(is_next), T.Then():
                self._fetch(0, now + T.int64(1))
            self._commit()
            rows.weigh(scores, now * size)
            self._wait(1, now)  # for values
            with T.If(is_next), T.Then():
                self._fetch_scales(0, now + T.int64(1))
            rows.add_values(scores)
        rows.finish()

    def _commit(self) -> None:
        """Ends a group of copies."""
        self.call("commit_copies")

    def _wait(self, left: int, tile: Value) -> None:
        """Until all copies of a tile but so many groups' are here, and nobody reads what the next ones go to."""
        self.call(f"wait_for_copies<{left}>")
        synchronize()

    def _leave_keys(self, tile: Value) -> None:
        """Until nobody reads the tile of keys any more."""
        synchronize()

    def _fetch(self, which: int, tile: Value) -> None:
        """Asks for a tile of keys (0) or values (1). In place of those that nobody sees come others."""
        t, kernel, layout = self.t, self.t.kernel, self.tile
        dim, row, at = (
            (kernel.key_dim, layout.row, layout.keys_at), (kernel.value_dim, layout.value_row, layout.values_at)
        )[which]  # fmt: skip
        copy = {"int8": "copy_codes", E4M3: "copy_e4m3"}.get(kernel.kv_dtype, "copy_16")
        per_piece = 8 if copy == "copy_16" else 16
        pieces = -(-(layout.key_dim if which == 0 else dim) // per_piece)
        for first in range(0, layout.keys * pieces, layout.threads):
            i = self.thread + T.int64(first)
            with T.If(i < T.int64(layout.keys * pieces)), T.Then():
                place, piece = self.share.place(tile * layout.keys + i // pieces), i % pieces
                source = t.pools[which][(*place, T.min(piece, T.int64(dim // per_piece - 1)) * per_piece)]
                to = self.memory[T.int64(at) + i // pieces * row + piece * per_piece]
                self.call(copy, T.address_of(to), T.address_of(source))

    def _fetch_scales(self, which: int, tile: Value) -> None:
        if not self.scales:
            return
        with T.If(self.thread < T.int64(self.tile.keys)), T.Then():
            place = self.share.place(tile * self.tile.keys + self.thread)
            T.buffer_store(self.scales[which], self.t.scales[which][place], [self.thread])

    def _read_queries(self) -> None:
        """32 lanes read some rows, one after the other."""
        count = self.tile.rows // (self.tile.threads // WARP)
        with T.serial(count) as i:
            row = keep(self.thread // WARP * count + T.cast(i, "int64"))
            self._read_query(row, *self.share.row(row))

    def _read_query(self, row: Value, token: Value, head: Value) -> None:
        kernel, lane = self.t.kernel, self.thread % WARP
        read = Head.read(self.t, 0, self.share.start + token, kernel.starts[0] + head * kernel.key_dim, kernel.key_dim, lane)

        def put(d: Value, value: Value) -> None:
            self.call(f"store_{self.dtype}", T.address_of(self.memory[row * self.tile.row + d]), value)

        read.each(lambda j, d: put(d, read.numbers[j]))
        if self.tile.key_dim > kernel.key_dim:
            with T.If(lane < T.int64(self.tile.key_dim - kernel.key_dim)), T.Then():
                put(T.int64(kernel.key_dim) + lane, T.float32(0))


class Rows:
    """A warp's 16 rows. A lane has two of them, r = lane / 4 and r + 8, and of tiles of 8 columns those at 2 (lane % 4) and the next
    (`matrix.cuh`): the highest scores, sums of weights, and sums of values."""

    places: ClassVar[tuple[int, ...]] = (0, 8)  # of a lane's rows, from its first one on
    over_row: ClassVar[str] = "of_four"  # lanes that share a row

    def __init__(self, block: Block) -> None:
        self.block, kernel, unit = block, block.t.kernel, gpu().matrix
        self.lane, self.warp = block.lane, block.warp
        rows = [block.share.row(self.warp * ROWS + unit.place(self.lane) + T.int64(place)) for place in self.places]
        self.tokens = [keep(token) for token, _ in rows]
        self.heads = [keep(head) for _, head in rows]
        self.positions = [keep(block.share.before + token) for token in self.tokens]
        self.begins = [keep(first_seen(kernel, position)) for position in self.positions]
        self.slopes = [keep(block.t.slopes[head]) for head in self.heads] if block.t.slopes is not None else None
        count, num_sums = len(self.places), kernel.value_dim // 16 * unit.sums * 16 // unit.rows
        self.highest, self.totals, self.sums = registers(count), registers(count), registers(num_sums)
        for held, size, value in ((self.highest, count, LOWEST), (self.totals, count, 0.0), (self.sums, num_sums, 0.0)):
            for i in range(size):
                T.buffer_store(held, T.float32(value), [i])

    def scores(self) -> Buffer:
        """Products of queries and a tile of keys: four for every eight keys."""
        block, tile = self.block, self.block.tile
        found = registers(tile.keys // 2)
        for i in range(tile.keys // 2):
            T.buffer_store(found, T.float32(0), [i])
        for part in range(tile.key_dim // SLICE):
            column = T.int64(part * SLICE) + self.lane % 4 * 8
            halves, queries = [registers(4, "int32") for _ in (0, 1)], registers(8, "int32")
            for half, words in enumerate(halves):
                row = self.warp * 16 + self.lane // 4 + T.int64(8 * half)
                block.call("load_16", T.address_of(words[0]), T.address_of(block.memory[row * tile.row + column]))
                for i in range(4):
                    T.buffer_store(queries, words[i], [2 * i + half])
            for eight in range(tile.keys // 8):
                keys, row = registers(4, "int32"), T.int64(eight * 8) + self.lane // 4
                source = block.memory[T.int64(tile.keys_at) + row * tile.row + column]
                block.call("load_16", T.address_of(keys[0]), T.address_of(source))
                for step in (0, 1):
                    operands = (found[4 * eight], queries[4 * step], keys[2 * step])
                    block.call(f"multiply_{block.dtype}", *map(T.address_of, operands))
        return found

    def columns(self) -> Iterator[tuple[int, int, Value]]:
        """Of each of a lane's scores: its index, its row's, and its column."""
        for eight, half, j in itertools.product(range(self.block.tile.keys // 8), (0, 1), (0, 1)):
            yield 4 * eight + 2 * half + j, half, self.lane % 4 * 2 + T.int64(8 * eight + j)

    def results(self, which: int) -> Iterator[tuple[int, Value]]:
        """Of each of a lane's sums of values for a row: its index and its column."""
        for eight, j in itertools.product(range(self.block.t.kernel.value_dim // 8), (0, 1)):
            yield 4 * eight + 2 * which + j, self.lane % 4 * 2 + T.int64(8 * eight + j)

    def weigh(self, scores: Buffer, start: Value) -> None:
        """Makes weights of the scores of the keys from `start` on, and scales what was summed before to the new highest one."""
        block, kernel = self.block, self.block.t.kernel
        highest = registers(len(self.places))
        for half in range(len(self.places)):
            T.buffer_store(highest, self.highest[half], [half])

        def is_seen(half: int, column: Value) -> Value:
            key = start + column
            return tvm.tirx.all(key <= self.positions[half], key >= self.begins[half])

        for i, half, column in self.columns():
            value = scores[i] * T.float32(kernel.scale)
            value = value * block.scales[0][column] if block.scales else value
            if kernel.softcap:
                value = T.float32(kernel.softcap) * T.tanh(value * T.float32(1 / kernel.softcap))
            if self.slopes is not None:
                value = value + self.slopes[half] * T.cast(start + column - self.positions[half], "float32")
            T.buffer_store(scores, T.Select(is_seen(half, column), keep(value), T.float32(LOWEST)), [i])
            T.buffer_store(highest, T.max(highest[half], scores[i]), [half])
        for half in range(len(self.places)):
            new = keep(T.call_extern("float32", f"highest_{self.over_row}", highest[half]))
            self._scale(half, new)
        for i, half, column in self.columns():
            weight = keep(T.Select(is_seen(half, column), T.exp(scores[i] - self.highest[half]), T.float32(0)))
            T.buffer_store(self.totals, self.totals[half] + weight, [half])
            T.buffer_store(scores, weight * block.scales[1][column] if block.scales else weight, [i])

    def _scale(self, half: int, highest: Value) -> None:
        kept = keep(T.exp(self.highest[half] - highest))
        T.buffer_store(self.highest, highest, [half])
        T.buffer_store(self.totals, self.totals[half] * kept, [half])
        for place, _ in self.results(half):
            T.buffer_store(self.sums, self.sums[place] * kept, [place])

    def add_values(self, weights: Buffer) -> None:
        """Adds a tile of values by their weights."""
        block, kernel, tile = self.block, self.block.t.kernel, self.block.tile
        for step in range(tile.keys // 16):
            words = registers(4, "int32")
            for i in range(4):
                pair = (weights[8 * step + 2 * i], weights[8 * step + 2 * i + 1])
                T.buffer_store(words, T.call_extern("int32", f"pair_{block.dtype}", *pair), [i])
            for sixteen in range(kernel.value_dim // 16):
                values, matrix = registers(4, "int32"), self.lane // 8
                key, column = T.int64(16 * step) + matrix % 2 * 8 + self.lane % 8, T.int64(16 * sixteen) + matrix // 2 * 8
                source = block.memory[T.int64(tile.values_at) + key * tile.value_row + column]
                block.call("load_transposed", T.address_of(values[0]), T.address_of(source))
                for eight in (0, 1):
                    operands = (self.sums[8 * sixteen + 4 * eight], words[0], values[2 * eight])
                    block.call(f"multiply_{block.dtype}", *map(T.address_of, operands))

    def finish(self) -> None:
        """Writes the results."""
        block, kernel = self.block, self.block.t.kernel
        for half, place in enumerate(self.places):
            T.buffer_store(self.totals, T.call_extern("float32", f"sum_{self.over_row}", self.totals[half]), [half])
            if block.t.sinks is not None:
                sink = keep(block.t.sinks[self.heads[half]])
                self._scale(half, keep(T.max(self.highest[half], sink)))
                T.buffer_store(self.totals, self.totals[half] + T.exp(sink - self.highest[half]), [half])
            row = block.share.first + self.warp * ROWS + gpu().matrix.place(self.lane) + T.int64(place)
            with T.If(row <= block.share.last), T.Then():
                for i, column in self.results(half):
                    index = block.share.start + self.tokens[half], self.heads[half] * kernel.value_dim + column
                    store(block.t.out, index, self.sums[i] / self.totals[half])
