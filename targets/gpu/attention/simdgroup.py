"""Paged attention of sequences that bring several tokens by matrices of SIMD groups (`targets/gpu/simdgroup.py`) and online softmax
(FlashAttention-2, arXiv:2307.08691).

A block has rows of a sequence, which are its tokens and the query heads of a K/V head, and takes keys in tiles from multiples of the tile's
size on. Keys and values take turns in the block's memory, in float32 whatever pages hold; the next ones are read while these are
multiplied. Nothing is rounded. Since nobody knows which lane has what of a matrix, weights are made in the block's memory, and what was
summed before is scaled by a diagonal matrix. Keys that a row does not see change none of its bits: a row has the same ones whatever stands
beside it, and however a prompt is cut into parts of several tokens. Sequences that bring one token go another way (`plain.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import ITEM_BYTES
from cupola.targets.attention_shape import AttentionShape
from cupola.targets.emit import Buffer, Value, e4m3_to_f32, prim_func
from cupola.targets.generic import attention as generic
from cupola.targets.generic.attention import AttentionTensors, attention_tensors
from cupola.targets.gpu.attention.chunks import takes
from cupola.targets.gpu.attention.plain import LOWEST, Head, append, attend
from cupola.targets.gpu.attention.share import Share, first_seen, most_shares, share_of
from cupola.targets.gpu.emit import WARP, any_lane, blocks, cached, keep, registers, shared, store, synchronize
from cupola.targets.gpu.simdgroup import SIDE, SIZE, Matrices, meet

_MOST_DIM = 256  # of a head, for the block's memory
_PER_ROW = WARP // SIDE  # lanes that make a row's weights
_PIECE_BYTES = 16


def lower_paged_attention(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`PagedAttention` over pools whose rows are whole loads of 16 bytes, and whole matrices wide."""
    return generic.lower_paged_attention(call, builder, _attention)


@cached
def _attention(kernel: AttentionShape) -> tvm.tirx.PrimFunc | None:
    def body() -> None:
        tensors = attention_tensors(kernel)
        append(tensors)
        attend(tensors, most=1)
        attend_together(tensors)

    dims = (kernel.key_dim, kernel.value_dim)
    return prim_func(body) if takes(kernel) and all(dim % SIDE == 0 and dim <= _MOST_DIM for dim in dims) else None


def attend_together(t: AttentionTensors) -> None:
    """Writes the results of sequences that bring several tokens, whose keys and values stand in pages."""
    tile = _Tile.of(t.kernel)
    with blocks(most_shares(t, tile.rows), t.kernel.num_kv_heads, threads=tile.warps * WARP) as (index, group, thread):
        memory = shared(tile.numbers)
        # In a register: what is multiplied on the host is no multiple of a row for the code generator.
        t = replace(t, layer=keep(t.layer))
        with share_of(t, index, group, tile.rows) as share:
            _Block(t, tile, memory, share, thread).run()


@dataclass(frozen=True)
class _Tile:
    """A block's memory, in floats: a tile of keys or of values, in matrices one after the other; scales of codes; and for each warp the
    weights of its rows and diagonal matrices.

    Attributes:
        warps: of a block.
        keys: of a tile, as many as 8 rows of each warp.
        eights: rows of a warp, by 8.
        dim: of keys or values, the larger.
        has_scales: whether pages hold codes.
    """

    warps: int
    keys: int
    eights: int
    dim: int
    has_scales: bool

    @staticmethod
    def of(kernel: AttentionShape) -> _Tile:
        """That of a kernel."""
        dim = max(kernel.key_dim, kernel.value_dim)
        warps = 4 if dim <= 128 else 2
        return _Tile(warps, SIDE * warps, 2 if dim <= 64 else 1, dim, kernel.kv_dtype == "int8")

    @property
    def rows(self) -> int:
        """Of a block."""
        return self.warps * self.eights * SIDE

    @property
    def stride(self) -> int:
        """From the weights of a row to those of the next: lanes read from different banks."""
        return self.keys + 4

    @property
    def scales_at(self) -> int:
        """The first scale: those of keys, then those of values."""
        return self.keys * self.dim

    @property
    def weights_at(self) -> int:
        """The first warp's weights."""
        return self.scales_at + 2 * self.keys * self.has_scales

    @property
    def per_eight(self) -> int:
        """Of 8 rows: their weights, and a diagonal matrix."""
        return SIDE * self.stride + SIZE

    @property
    def numbers(self) -> int:
        """All of it."""
        return self.weights_at + self.warps * self.eights * self.per_eight


@dataclass(frozen=True)
class _Block:
    """A block's part of the work."""

    t: AttentionTensors
    tile: _Tile
    memory: Buffer
    share: Share
    thread: Value

    def run(self) -> None:
        """All of it."""
        size = self.tile.keys
        keys, values = _Pages(self, 0), _Pages(self, 1)
        begin = keep(self.share.begin // size)
        keys.fetch(begin)
        rows = _Rows(self)
        with T.serial(self.share.end // size + T.int64(1) - begin) as i:
            now = keep(begin + T.cast(i, "int64"))
            keys.put()
            values.fetch(now)
            rows.score()
            rows.weigh(now * size)
            values.put()
            with T.If((now + T.int64(1)) * size <= self.share.end), T.Then():
                keys.fetch(now + T.int64(1))
            rows.add_values()
        rows.finish()


class _Pages:
    """Keys (0) or values (1) on their way from pages to the block's memory. A thread reads 16 bytes at once."""

    def __init__(self, block: _Block, which: int) -> None:
        kernel = block.t.kernel
        self._block, self._which = block, which
        self._dim = (kernel.key_dim, kernel.value_dim)[which]
        self._count = _PIECE_BYTES // ITEM_BYTES[kernel.kv_dtype]
        self._num_pieces, threads = block.tile.keys * self._dim // self._count, block.tile.warps * WARP
        self._starts = range(0, self._num_pieces, threads)
        self._raw = [registers(self._count, str(block.t.pools[which].dtype)) for _ in self._starts]
        self._scales = [registers() for _ in block.t.scales if which == 0]  # those of values too: weights are made before values come

    def _each(self, do: Callable[[Buffer, Value, Value], None]) -> None:
        threads = self._block.tile.warps * WARP
        for raw, start in zip(self._raw, self._starts, strict=True):
            piece = self._block.thread + T.int64(start)
            key, d = piece // (self._dim // self._count), piece % (self._dim // self._count) * self._count
            if start + threads <= self._num_pieces:
                do(raw, key, d)
            else:
                with T.If(piece < T.int64(self._num_pieces)), T.Then():
                    do(raw, key, d)

    def _number(self, stored: Value) -> Value:
        return e4m3_to_f32(keep(T.cast(stored, "int32")), 1) if self._block.t.kernel.in_e4m3 else T.cast(stored, "float32")

    def fetch(self, tile: Value) -> None:
        """Asks for a tile."""
        block, first = self._block, tile * self._block.tile.keys

        def ask(raw: Buffer, key: Value, d: Value) -> None:
            source = block.t.pools[self._which][(*block.share.place(first + key), T.ramp(d, 1, self._count))]
            T.buffer_store(raw, source, [T.ramp(0, 1, self._count)])

        self._each(ask)
        if self._scales:
            with T.If(block.thread < T.int64(block.tile.keys)), T.Then():
                place = block.share.place(first + block.thread)
                for held, scales in zip(self._scales, block.t.scales, strict=True):
                    T.buffer_store(held, scales[place], [0])

    def put(self) -> None:
        """Writes it to the block's memory, once nobody needs what is there; and waits for it."""
        block, values = self._block, registers(4)
        synchronize()

        def write(raw: Buffer, key: Value, d: Value) -> None:
            for start in range(0, self._count, 4):
                for j in range(4):
                    T.buffer_store(values, self._number(raw[start + j]), [j])
                column = d + T.int64(start)
                place = (key // SIDE * (self._dim // SIDE) + column // SIDE) * SIZE + key % SIDE * SIDE + column % SIDE
                T.buffer_store(block.memory, values[T.ramp(0, 1, 4)], [T.ramp(place, 1, 4)])

        self._each(write)
        if self._scales:
            with T.If(block.thread < T.int64(block.tile.keys)), T.Then():
                for i, held in enumerate(self._scales):
                    T.buffer_store(block.memory, held[0], [T.int64(block.tile.scales_at + i * block.tile.keys) + block.thread])
        synchronize()


class _Eight:
    """Eight rows of a warp, of which a lane has a quarter of one: where their weights lie, and what goes on from tile to tile, the highest
    score and the lane's part of the sum of weights."""

    def __init__(self, block: _Block, warp: Value, lane: Value, index: int) -> None:
        tile, kernel = block.tile, block.t.kernel
        self.first = warp * (tile.eights * SIDE) + T.int64(index * SIDE)
        self.weights = keep(T.int64(tile.weights_at) + (warp * tile.eights + T.int64(index)) * tile.per_eight)
        self.diagonal = self.weights + T.int64(SIDE * tile.stride)
        token, head = block.share.row(self.first + lane // _PER_ROW)
        self.position, self.head = keep(block.share.before + token), keep(head)
        self.begin = keep(first_seen(kernel, self.position))
        self.slope = keep(block.t.slopes[self.head]) if block.t.slopes is not None else None
        self.highest, self.total = registers(), registers()
        T.buffer_store(self.highest, T.float32(LOWEST), [0])
        T.buffer_store(self.total, T.float32(0), [0])


class _Rows:
    """A warp's rows, by eight: their queries and sums of values, in matrices."""

    def __init__(self, block: _Block) -> None:
        kernel, tile = block.t.kernel, block.tile
        self._block, self._memory = block, block.memory
        self._lane, warp = block.thread % WARP, block.thread // WARP
        self._row, self._quarter = self._lane // _PER_ROW, self._lane % _PER_ROW
        self._per_lane = tile.keys // _PER_ROW
        self._own = warp * (SIDE * tile.dim)  # the part of the tile's memory that holds rows of this warp, before and after the tiles
        self._across = (kernel.key_dim // SIDE, kernel.value_dim // SIDE)  # matrices
        self._eights = [_Eight(block, warp, self._lane, i) for i in range(tile.eights)]
        self._queries, self._sums = (Matrices(tile.eights * across) for across in self._across)
        self._scores = Matrices(tile.eights * (tile.keys // SIDE))
        self._operands, self._zero = Matrices(max(tile.keys // SIDE, 4)), Matrices(1)
        self._sums.clear()
        self._zero.clear()
        for i, eight in enumerate(self._eights):
            self._read_queries(i, eight)

    def _read_queries(self, index: int, eight: _Eight) -> None:
        block, kernel = self._block, self._block.t.kernel
        with T.serial(SIDE) as i:
            row = T.cast(i, "int64")
            token, head = (keep(value) for value in block.share.row(eight.first + row))
            read = Head.read(block.t, 0, block.share.start + token, kernel.starts[0] + head * kernel.key_dim, kernel.key_dim, self._lane)
            read.each(lambda j, d: T.buffer_store(self._memory, read.numbers[j], [self._own + row * kernel.key_dim + d]))
        meet()
        for j in range(self._across[0]):
            place = self._own + T.int64(j * SIDE)
            self._queries.load(index * self._across[0] + j, self._memory, place, kernel.key_dim)
        meet()

    def score(self) -> None:
        """Products of queries and a tile's keys, in the memory for weights."""
        tile, across = self._block.tile, self._across[0]
        eights = tile.keys // SIDE
        self._scores.clear()
        for step in range(across):
            for j in range(eights):
                self._operands.load(j, self._memory, T.int64((j * across + step) * SIZE), turned=True)
            for i in range(tile.eights):
                for j in range(eights):
                    self._scores.multiply(i * eights + j, self._queries, i * across + step, self._operands, j)
        for i, eight in enumerate(self._eights):
            for j in range(eights):
                self._scores.store(i * eights + j, self._memory, eight.weights + T.int64(j * SIDE), tile.stride)
        meet()

    def weigh(self, start: Value) -> None:
        """Makes weights of the scores of the keys from `start` on."""
        for eight in self._eights:
            self._weigh(eight, start)
        meet()

    def _weigh(self, eight: _Eight, start: Value) -> None:
        kernel, tile, count = self._block.t.kernel, self._block.tile, self._per_lane
        values, highest = registers(count), registers()
        T.buffer_store(highest, eight.highest[0], [0])
        first = self._quarter * count
        place = eight.weights + self._row * tile.stride + first
        for i in range(0, count, 4):
            T.buffer_store(values, self._memory[T.ramp(place + T.int64(i), 1, 4)], [T.ramp(i, 1, 4)])

        def is_seen(i: int) -> Value:
            key = start + first + T.int64(i)
            return tvm.tirx.all(key <= eight.position, key >= eight.begin)

        for i in range(count):
            value = values[i] * T.float32(kernel.scale)
            if tile.has_scales:
                value = value * self._memory[T.int64(tile.scales_at + i) + first]
            if kernel.softcap:
                value = T.float32(kernel.softcap) * T.tanh(value * T.float32(1 / kernel.softcap))
            if eight.slope is not None:
                value = value + eight.slope * T.cast(start + first + T.int64(i) - eight.position, "float32")
            T.buffer_store(values, T.Select(is_seen(i), keep(value), T.float32(LOWEST)), [i])
            T.buffer_store(highest, T.max(highest[0], values[i]), [0])
        kept = self._raise(eight, self._over_row(highest, T.max))
        for i in range(count):
            weight = keep(T.Select(is_seen(i), T.exp(values[i] - eight.highest[0]), T.float32(0)))
            T.buffer_store(eight.total, eight.total[0] + weight, [0])
            if tile.has_scales:
                weight = weight * self._memory[T.int64(tile.scales_at + tile.keys + i) + first]
            T.buffer_store(values, weight, [i])
        for i in range(0, count, 4):
            T.buffer_store(self._memory, values[T.ramp(i, 1, 4)], [T.ramp(place + T.int64(i), 1, 4)])
        for j in range(SIDE // _PER_ROW):
            column = self._quarter * (SIDE // _PER_ROW) + T.int64(j)
            number = T.Select(column == self._row, kept, T.float32(0))
            T.buffer_store(self._memory, number, [eight.diagonal + self._row * SIDE + column])

    def _over_row(self, held: Buffer, combine: Callable[[Value, Value], Value]) -> Value:
        """The four lanes' values of a row, combined; every one gets the same bits."""
        for distance in (1, 2):
            T.buffer_store(held, combine(held[0], any_lane(held[0], self._lane ^ T.int64(distance))), [0])
        return held[0]

    def _raise(self, eight: _Eight, highest: Value) -> Value:
        """Makes it the highest score, and gives what sums are multiplied by."""
        kept = keep(T.exp(eight.highest[0] - highest))
        T.buffer_store(eight.highest, highest, [0])
        T.buffer_store(eight.total, eight.total[0] * kept, [0])
        return kept

    def add_values(self) -> None:
        """Scales what was summed before, and adds a tile of values by their weights."""
        tile, across = self._block.tile, self._across[1]
        for i, eight in enumerate(self._eights):
            self._operands.load(0, self._memory, eight.diagonal)
            for j in range(across):
                self._sums.multiply(i * across + j, self._operands, 0, self._sums, i * across + j, self._zero)
        for step in range(tile.keys // SIDE):
            for i, eight in enumerate(self._eights):
                self._scores.load(i, self._memory, eight.weights + T.int64(step * SIDE), tile.stride)
            for start in range(0, across, 4):
                some = range(start, min(across, start + 4))
                for j in some:
                    self._operands.load(j - start, self._memory, T.int64((step * across + j) * SIZE))
                for i in range(tile.eights):
                    for j in some:
                        self._sums.multiply(i * across + j, self._scores, i, self._operands, j - start)

    def finish(self) -> None:
        """Writes the results."""
        block, dim = self._block, self._block.t.kernel.value_dim
        synchronize()
        for i, eight in enumerate(self._eights):
            total, factor = keep(self._over_row(eight.total, lambda a, b: a + b)), T.float32(1)
            if block.t.sinks is not None:
                sink = keep(block.t.sinks[eight.head])
                factor = self._raise(eight, keep(T.max(eight.highest[0], sink)))
                total = keep(total * factor + T.exp(sink - eight.highest[0]))
            with T.If(self._quarter == T.int64(0)), T.Then():
                T.buffer_store(self._memory, factor / total, [eight.diagonal + self._row])
            for j in range(self._across[1]):
                self._sums.store(i * self._across[1] + j, self._memory, self._own + T.int64(j * SIDE), dim)
            meet()
            with T.serial(SIDE) as row, T.If(block.share.first + eight.first + T.cast(row, "int64") <= block.share.last), T.Then():
                self._write(eight, T.cast(row, "int64"))
            meet()

    def _write(self, eight: _Eight, row: Value) -> None:
        block, kernel = self._block, self._block.t.kernel
        token, head = (keep(value) for value in block.share.row(eight.first + row))
        factor = keep(self._memory[eight.diagonal + row])
        sums = Head.empty(kernel.value_dim, self._lane)

        def write(_: int, e: Value) -> None:
            value = self._memory[self._own + row * kernel.value_dim + e] * factor
            store(block.t.out, (block.share.start + token, head * kernel.value_dim + e), value)

        sums.each(write)
