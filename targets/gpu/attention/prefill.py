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

import tvm
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import E4M3
from cupola.targets.attention_shape import AttentionShape
from cupola.targets.emit import Buffer, Value
from cupola.targets.generic.attention import AttentionTensors
from cupola.targets.gpu.attention.plain import LOWEST, Head, some_bring_more
from cupola.targets.gpu.emit import WARP, blocks, keep, registers, shared, store, synchronize

ROWS = 64  # of a block
_WARPS = 4  # of a block; each has 16 rows
_THREADS = _WARPS * WARP
_SLICE = 32  # dimensions of a key that a lane's 16 bytes and those of its three neighbours are
_MOST_DIM = 256  # of a head, for registers


def multiplies(kernel: AttentionShape) -> bool:
    """True if there are matrix units for pages of the type, and registers for a head."""
    fits = all(dim % 16 == 0 and dim <= _MOST_DIM for dim in (kernel.key_dim, kernel.value_dim))
    return kernel.kv_dtype != "float32" and fits


def attend_together(t: AttentionTensors) -> None:
    """Writes the results of sequences that bring several tokens, whose keys and values stand in pages."""
    kernel, per_group = t.kernel, t.kernel.num_heads // t.kernel.num_kv_heads
    tile = _Tile.of(kernel)
    most = (t.n * per_group // T.int64(ROWS) + t.batch) * some_bring_more(t)
    with blocks(most, kernel.num_kv_heads, threads=_THREADS) as (index, group, thread):
        memory = T.alloc_buffer((tile.halves,), "int16", scope="shared.dyn")
        scales = [shared(tile.keys) for _ in t.scales]
        found = registers(3, "int64")  # tiles before, the sequence, its first tile
        for i, value in enumerate((0, -1, 0)):
            T.buffer_store(found, T.int64(value), [i])
        with T.serial(t.batch) as i:
            count = keep(T.cast(t.query_starts[i + 1] - t.query_starts[i], "int64"))
            with T.If(count > T.int64(1)), T.Then():
                rows = (count * per_group + T.int64(ROWS - 1)) // T.int64(ROWS)
                with T.If(tvm.tirx.all(index >= found[0], index < found[0] + rows)), T.Then():
                    T.buffer_store(found, T.cast(i, "int64"), [1])
                    T.buffer_store(found, found[0], [2])
                T.buffer_store(found, found[0] + rows, [0])
        with T.If(found[1] >= T.int64(0)), T.Then():
            sequence, first = found[1], keep((index - found[2]) * ROWS)
            start = keep(T.cast(t.query_starts[sequence], "int64"))
            count = keep(T.cast(t.query_starts[sequence + T.int64(1)], "int64") - start)
            before = keep(T.cast(t.context_lens[sequence], "int64") - count)
            last = keep(T.min(first + T.int64(ROWS), count * per_group) - T.int64(1))
            begin = keep(_first_seen(kernel, before + first // per_group))
            end = keep(before + last // per_group)
            block = _Block(t, tile, memory, scales, sequence, group, start, before, first, last, begin, end, thread)
            block.run()


def _first_seen(kernel: AttentionShape, position: Value) -> Value:
    return T.max(T.int64(0), position + T.int64(1 - kernel.window)) if kernel.window else T.int64(0)


@dataclass(frozen=True)
class _Tile:
    """A block's shared memory, in halves: queries, then a tile of keys, then one of values.

    Attributes:
        keys: of a tile.
        key_dim: of the keys, to whole slices.
        row: halves from a query or key to the next: an odd multiple of 64 bytes, so that lanes read from different banks.
        value_row: the same of values, for `load_transposed`: 16 bytes more than a multiple of 128.
    """

    keys: int
    key_dim: int
    row: int
    value_row: int

    @staticmethod
    def of(kernel: AttentionShape) -> _Tile:
        """That of a kernel."""
        slices = -(-kernel.key_dim // _SLICE)
        keys = 64 if max(kernel.key_dim, kernel.value_dim) <= 128 else 32
        return _Tile(keys, slices * _SLICE, (slices | 1) * _SLICE, -(-kernel.value_dim // 64) * 64 + 8)

    @property
    def keys_at(self) -> int:
        """The first key."""
        return ROWS * self.row

    @property
    def values_at(self) -> int:
        """The first value."""
        return self.keys_at + self.keys * self.row

    @property
    def halves(self) -> int:
        """All of it."""
        return self.values_at + self.keys * self.value_row


@dataclass(frozen=True)
class _Block:
    """A block's part of the work.

    Attributes:
        group: the K/V head.
        start, before: the sequence's first new token, and how many stand before it.
        first, last: of the block's rows among the sequence's.
        begin, end: the first and the last key that one of them sees.
    """

    t: AttentionTensors
    tile: _Tile
    memory: Buffer
    scales: list[Buffer]
    sequence: Value
    group: Value
    start: Value
    before: Value
    first: Value
    last: Value
    begin: Value
    end: Value
    thread: Value

    @property
    def dtype(self) -> str:
        """The type that is multiplied: that of the pages, float16 for E4M3 and bfloat16 for codes, of which they hold all."""
        return "float16" if self.t.kernel.kv_dtype in ("float16", E4M3) else "bfloat16"

    def call(self, function: str, *arguments: Value) -> None:
        """A function of `matrix.cuh`."""
        T.evaluate(T.call_extern("int32", function, *arguments))

    def row(self, row: Value) -> tuple[Value, Value]:
        """The token, counted from the sequence's first new one, and the query head, of a row; of one that there is not, the last one's."""
        per_group, x = self.t.kernel.num_heads // self.t.kernel.num_kv_heads, T.min(self.first + row, self.last)
        return x // per_group, self.group * per_group + x % per_group

    def run(self) -> None:
        """All of it."""
        rows, size = _Rows(self), self.tile.keys
        begin = keep(self.begin // size)
        self._fetch(0, begin)
        self.call("commit_copies")
        self._fetch_scales(0, begin)
        self._read_queries()
        with T.serial(self.end // size + T.int64(1) - begin) as i:
            now = keep(begin + T.cast(i, "int64"))
            is_next = (now + T.int64(1)) * size <= self.end
            self._wait(0)  # for keys, and for who reads values
            self._fetch(1, now)
            self.call("commit_copies")
            self._fetch_scales(1, now)
            scores = rows.scores()
            synchronize()
            with T.If(is_next), T.Then():
                self._fetch(0, now + T.int64(1))
            self.call("commit_copies")
            rows.weigh(scores, now * size)
            self._wait(1)  # for values
            with T.If(is_next), T.Then():
                self._fetch_scales(0, now + T.int64(1))
            rows.add_values(scores)
        rows.finish()

    def _wait(self, left: int) -> None:
        self.call(f"wait_for_copies<{left}>")
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
        for first in range(0, layout.keys * pieces, _THREADS):
            i = self.thread + T.int64(first)
            with T.If(i < T.int64(layout.keys * pieces)), T.Then():
                place, piece = self._place(tile * layout.keys + i // pieces), i % pieces
                source = t.pools[which][(*place, T.min(piece, T.int64(dim // per_piece - 1)) * per_piece)]
                to = self.memory[T.int64(at) + i // pieces * row + piece * per_piece]
                self.call(copy, T.address_of(to), T.address_of(source))

    def _fetch_scales(self, which: int, tile: Value) -> None:
        if not self.scales:
            return
        with T.If(self.thread < T.int64(self.tile.keys)), T.Then():
            place = self._place(tile * self.tile.keys + self.thread)
            T.buffer_store(self.scales[which], self.t.scales[which][place], [self.thread])

    def _place(self, key: Value) -> tuple[Value, ...]:
        kernel, seen = self.t.kernel, keep(T.min(T.max(key, self.begin), self.end))
        held = keep(T.cast(self.t.block_tables[self.sequence, seen // kernel.block_size], "int64"))
        return self.t.layer, held, seen % kernel.block_size, self.group

    def _read_queries(self) -> None:
        """A warp reads its rows, one after the other."""
        with T.serial(ROWS // _WARPS) as i:
            row = keep(self.thread // WARP * (ROWS // _WARPS) + T.cast(i, "int64"))
            self._read_query(row, *self.row(row))

    def _read_query(self, row: Value, token: Value, head: Value) -> None:
        kernel, lane = self.t.kernel, self.thread % WARP
        read = Head.read(self.t, 0, self.start + token, kernel.starts[0] + head * kernel.key_dim, kernel.key_dim, lane)

        def put(d: Value, value: Value) -> None:
            self.call(f"store_{self.dtype}", T.address_of(self.memory[row * self.tile.row + d]), value)

        read.each(lambda j, d: put(d, read.numbers[j]))
        if self.tile.key_dim > kernel.key_dim:
            with T.If(lane < T.int64(self.tile.key_dim - kernel.key_dim)), T.Then():
                put(T.int64(kernel.key_dim) + lane, T.float32(0))


class _Rows:
    """A warp's 16 rows. A lane has two of them, r = lane / 4 and r + 8, and of tiles of 8 columns those at 2 (lane % 4) and the next
    (`matrix.cuh`): the highest scores, sums of weights, and sums of values."""

    def __init__(self, block: _Block) -> None:
        self.block, kernel = block, block.t.kernel
        self.lane, self.warp = block.thread % WARP, block.thread // WARP
        rows = [block.row(self.warp * 16 + self.lane // 4 + T.int64(8 * half)) for half in (0, 1)]
        self.tokens = [keep(token) for token, _ in rows]
        self.heads = [keep(head) for _, head in rows]
        self.positions = [keep(block.before + token) for token in self.tokens]
        self.begins = [keep(_first_seen(kernel, position)) for position in self.positions]
        self.slopes = [keep(block.t.slopes[head]) for head in self.heads] if block.t.slopes is not None else None
        self.highest, self.totals, self.sums = registers(2), registers(2), registers(kernel.value_dim // 2)
        for held, count, value in ((self.highest, 2, LOWEST), (self.totals, 2, 0.0), (self.sums, kernel.value_dim // 2, 0.0)):
            for i in range(count):
                T.buffer_store(held, T.float32(value), [i])

    def scores(self) -> Buffer:
        """Products of queries and a tile of keys: four for every eight keys."""
        block, tile = self.block, self.block.tile
        found = registers(tile.keys // 2)
        for i in range(tile.keys // 2):
            T.buffer_store(found, T.float32(0), [i])
        for part in range(tile.key_dim // _SLICE):
            column = T.int64(part * _SLICE) + self.lane % 4 * 8
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

    def _columns(self) -> Iterator[tuple[int, int, int, Value]]:
        """Of each of a lane's scores: its index, its half, the index of its column, and the column."""
        for eight, half, j in itertools.product(range(self.block.tile.keys // 8), (0, 1), (0, 1)):
            yield 4 * eight + 2 * half + j, half, 2 * eight + j, self.lane % 4 * 2 + T.int64(8 * eight + j)

    def weigh(self, scores: Buffer, start: Value) -> None:
        """Makes weights of the scores of the keys from `start` on, and scales what was summed before to the new highest one."""
        block, kernel = self.block, self.block.t.kernel
        highest = registers(2)
        for half in (0, 1):
            T.buffer_store(highest, self.highest[half], [half])

        def is_seen(half: int, column: Value) -> Value:
            key = start + column
            return tvm.tirx.all(key <= self.positions[half], key >= self.begins[half])

        for i, half, _, column in self._columns():
            value = scores[i] * T.float32(kernel.scale)
            value = value * block.scales[0][column] if block.scales else value
            if kernel.softcap:
                value = T.float32(kernel.softcap) * T.tanh(value * T.float32(1 / kernel.softcap))
            if self.slopes is not None:
                value = value + self.slopes[half] * T.cast(start + column - self.positions[half], "float32")
            T.buffer_store(scores, T.Select(is_seen(half, column), keep(value), T.float32(LOWEST)), [i])
            T.buffer_store(highest, T.max(highest[half], scores[i]), [half])
        for half in (0, 1):
            new = keep(T.call_extern("float32", "highest_of_four", highest[half]))
            self._scale(half, new)
        for i, half, _, column in self._columns():
            weight = keep(T.Select(is_seen(half, column), T.exp(scores[i] - self.highest[half]), T.float32(0)))
            T.buffer_store(self.totals, self.totals[half] + weight, [half])
            T.buffer_store(scores, weight * block.scales[1][column] if block.scales else weight, [i])

    def _scale(self, half: int, highest: Value) -> None:
        kept = keep(T.exp(self.highest[half] - highest))
        T.buffer_store(self.highest, highest, [half])
        T.buffer_store(self.totals, self.totals[half] * kept, [half])
        for eight, j in itertools.product(range(self.block.t.kernel.value_dim // 8), (0, 1)):
            place = 4 * eight + 2 * half + j
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
        for half in (0, 1):
            T.buffer_store(self.totals, T.call_extern("float32", "sum_of_four", self.totals[half]), [half])
            if block.t.sinks is not None:
                sink = keep(block.t.sinks[self.heads[half]])
                self._scale(half, keep(T.max(self.highest[half], sink)))
                T.buffer_store(self.totals, self.totals[half] + T.exp(sink - self.highest[half]), [half])
            row = block.first + self.warp * 16 + self.lane // 4 + T.int64(8 * half)
            with T.If(row <= block.last), T.Then():
                for eight, j in itertools.product(range(kernel.value_dim // 8), (0, 1)):
                    column = self.heads[half] * kernel.value_dim + self.lane % 4 * 2 + T.int64(8 * eight + j)
                    store(block.t.out, (block.start + self.tokens[half], column), self.sums[4 * eight + 2 * half + j] / self.totals[half])
