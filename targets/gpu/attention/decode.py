"""Paged attention of sequences that bring one token: contexts are cut into chunks of one size, and blocks of threads share them out.

Sequences that bring several go another way (`prefill.py`), whoever stands beside them.

A block has a sequence, the query heads of a K/V head, and a chunk, whose keys and values it reads once, 16 bytes a lane. The last block
of a sequence and head to be done merges what the chunks gave, in their order: a row's bits depend on nothing but its own context. Products
and sums are in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.attention_shape import AttentionShape
from cupola.targets.cost import with_cost
from cupola.targets.emit import Buffer, Value, prim_func
from cupola.targets.generic import attention as generic
from cupola.targets.generic.attention import AttentionTensors, attention_tensors
from cupola.targets.gpu.attention.chunks import CHUNK, WARPS, WORDS, Lanes, heads_of, is_split_for, num_chunks, takes, workspace_shape
from cupola.targets.gpu.attention.plain import LOWEST, Head, Row, append, attend
from cupola.targets.gpu.attention.prefill import Block as TileBlock
from cupola.targets.gpu.attention.prefill import attend_together, multiplies
from cupola.targets.gpu.attention.turned import TurnedBlock
from cupola.targets.gpu.emit import WARP, blocks, cached, from_lane, gpu, keep, over_warp, registers, shared, store, synchronize, warp_sum

_THREADS = WARPS * WARP


def lower_paged_attention(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`PagedAttention` over pools whose rows are whole pieces of 16 bytes."""
    return generic.lower_paged_attention(call, builder, _attention, workspace_shape)


@cached
def _attention(k: AttentionShape) -> tvm.tirx.PrimFunc | None:
    def body() -> None:
        tensors = attention_tensors(k, workspace_shape)
        append(tensors)
        attend_alone(tensors)
        if multiplies(k):
            attend_together(tensors, TurnedBlock if gpu().matrix.is_square else TileBlock)
        else:
            attend(tensors, least=2)

    cost = KernelCost("float16" if multiplies(k) else "float32")  # of prompts; a token alone waits for memory
    return with_cost(prim_func(body), cost) if takes(k) else None


def attend_alone(t: AttentionTensors) -> None:
    """Writes the results of sequences that bring one token. Where all do, it appends the keys and values as well."""
    kernel = t.kernel
    max_blocks = t.block_tables.shape[1]
    is_split, (heads, parts) = is_split_for(kernel, t.batch), heads_of(kernel)
    grid = T.int64(1) + is_split * (num_chunks(kernel, max_blocks) - T.int64(1))
    with blocks(t.batch, kernel.num_kv_heads * parts, grid, threads=_THREADS) as (sequence, part, chunk, thread):
        token = keep(T.cast(t.query_starts[sequence], "int64"))
        position = keep(T.cast(t.context_lens[sequence], "int64") - T.int64(1))
        begin = keep(T.max(T.int64(0), position + T.int64(1 - kernel.window))) if kernel.window else T.int64(0)
        first = keep(begin // CHUNK)
        count = keep(position // CHUNK + T.int64(1) - first)
        is_alone = T.cast(t.query_starts[sequence + T.int64(1)], "int64") - token == T.int64(1)
        block = _Block(
            t, sequence, token, keep(part // parts), keep(part % parts * heads), begin, position, thread, heads,
            shared(heads * Lanes.of_keys(kernel).padded), shared(heads * CHUNK), shared(2 * heads),
            shared(WARPS * heads * kernel.value_dim),
        )  # fmt: skip
        with T.If(tvm.tirx.all(is_alone, chunk < count)), T.Then():
            splits = keep(T.cast(tvm.tirx.all(is_split == T.int64(1), count > T.int64(1)), "int32"))
            has_last = chunk + T.int64(1) == T.if_then_else(is_split == T.int64(1), count, T.int64(1))
            with T.If(tvm.tirx.all(t.n == t.batch, has_last)), T.Then():
                block.append()
            block.read_queries()
            synchronize()
            merged = _Merged(block)
            with T.serial(T.if_then_else(is_split == T.int64(1), T.int64(1), count)) as i:
                now = keep(chunk + T.cast(i, "int64"))
                block.score(first + now)
                synchronize()
                block.weigh(first + now)
                synchronize()
                block.sum_values(first + now)
                synchronize()
                block.each_element(lambda j, row, e: merged.leave_or_take(splits, now, j, row, e))
                synchronize()
            with T.If(splits != T.int32(0)):
                with T.Then():
                    index = T.cast(sequence * (kernel.num_kv_heads * parts) + part, "int32")
                    is_last = keep(T.call_extern("int32", "is_last_block", index, T.cast(count, "int32")))
                    with T.If(is_last != T.int32(0)), T.Then():
                        block.each_element(lambda j, row, e: merged.take_all(count, j, row, e))
                        block.each_element(merged.finish)
                with T.Else():
                    block.each_element(merged.finish)


@dataclass(frozen=True)
class _Block:
    """A block's part of the work.

    Attributes:
        group: the K/V head.
        first_head: of the query heads of that.
        begin, position: the first key that the token sees, and the last one, its own.
        queries: as `Lanes.place` has them, in shared memory as all that follow.
        scores: and then weights, of a chunk's keys.
        stats: the highest score and the sum of weights of each head.
        found: sums of values of each warp.
    """

    t: AttentionTensors
    sequence: Value
    token: Value
    group: Value
    first_head: Value
    begin: Value
    position: Value
    thread: Value
    heads: int
    queries: Buffer
    scores: Buffer
    stats: Buffer
    found: Buffer

    @property
    def lane(self) -> Value:
        """Of the warp."""
        return self.thread % WARP

    @property
    def warp(self) -> Value:
        """Of the block."""
        return self.thread // WARP

    def head(self, row: Value | int) -> Value:
        """The query head of a row; of a row that there is not the last one's."""
        per_group = self.t.kernel.num_heads // self.t.kernel.num_kv_heads
        return self.group * per_group + T.min(self.first_head + row, T.int64(per_group - 1))

    def append(self) -> None:
        """Writes the token's key and value. Blocks that share the heads of a K/V head all do, and write the same."""
        for which in (0, 1):
            with T.If(self.warp == T.int64(which)), T.Then():
                Row.read(self.t, which, self.token, self.group, self.lane).write(self.token, self.group)

    def read_queries(self) -> None:
        """A warp takes a head after the other."""
        kernel = self.t.kernel
        lanes = Lanes.of_keys(kernel)
        if lanes.padded != lanes.dim:
            for start in range(0, self.heads * lanes.padded, _THREADS):
                with T.If(self.thread + T.int64(start) < T.int64(self.heads * lanes.padded)), T.Then():
                    T.buffer_store(self.queries, T.float32(0), [self.thread + T.int64(start)])
            synchronize()

        def read(row: Value) -> None:
            head = Head.read(self.t, 0, self.token, kernel.starts[0] + self.head(row) * kernel.key_dim, kernel.key_dim, self.lane)
            head.each(lambda i, d: T.buffer_store(self.queries, head.numbers[i], [row * lanes.padded + lanes.place(d)]))

        self._each_row_of_warp(read)

    def _each_row_of_warp(self, do: Callable[[Value], None]) -> None:
        for start in range(0, self.heads, WARPS):
            row = self.warp + T.int64(start)
            with T.If(row < T.int64(self.heads)), T.Then():
                do(row)

    def each_element(self, do: Callable[[int, Value, Value], None]) -> None:
        """Does something for each of the thread's elements of the result, by its number, its row and its column."""
        dim = self.t.kernel.value_dim
        for j, start in enumerate(range(0, self.heads * dim, _THREADS)):
            x = self.thread + T.int64(start)
            with T.If(x < T.int64(self.heads * dim)), T.Then():
                do(j, x // dim, x % dim)

    def _bounds(self, chunk: Value) -> tuple[Value, Value]:
        """Of the keys in a chunk, counted from its first token on."""
        start = chunk * CHUNK
        return keep(T.max(self.begin - start, T.int64(0))), keep(T.min(self.position + T.int64(1) - start, T.int64(CHUNK)))

    def _each_step(
        self, chunk: Value, lanes: Lanes, pool: Buffer, do: Callable[[list[Value], list[tuple[Value, ...]], Buffer], None]
    ) -> None:
        """Reads what a block reads at a time. Gives the rows' offsets in the chunk, their places in pools, and the lane's words. In place
        of rows that nobody sees others are read."""
        t, kernel = self.t, self.t.kernel
        low, high = self._bounds(chunk)
        start = keep(low // lanes.step)
        with T.serial((high + T.int64(lanes.step - 1)) // T.int64(lanes.step) - start) as i:
            offsets, places, words = [], [], registers(lanes.in_flight * lanes.pieces * WORDS, "int32")
            for u in range(lanes.in_flight):
                row = (T.int64(u * WARPS) + self.warp) * lanes.at_once + self.lane // lanes.lanes
                offsets.append(keep((start + T.cast(i, "int64")) * lanes.step + row))
                key = keep(T.min(T.max(chunk * CHUNK + offsets[u], self.begin), self.position))
                held = keep(T.cast(t.block_tables[self.sequence, key // kernel.block_size], "int64"))
                places.append((t.layer, held, key % kernel.block_size, self.group))
                for piece in range(lanes.pieces):
                    source = T.address_of(pool[(*places[u], lanes.column(piece, self.lane))])
                    T.evaluate(T.call_extern("int32", "load_16", T.address_of(words[(u * lanes.pieces + piece) * WORDS]), source))
            do(offsets, places, words)

    def _numbers(self, lanes: Lanes, words: Buffer, index: int) -> Buffer:
        """The numbers of the lane's words at an index, of all rows in flight."""
        numbers = registers(lanes.in_flight * lanes.per_word)
        for u in range(lanes.in_flight):
            into = T.address_of(numbers[u * lanes.per_word])
            T.evaluate(T.call_extern("int32", f"floats_of_{lanes.dtype}", into, words[u * lanes.pieces * WORDS + index]))
        return numbers

    def score(self, chunk: Value) -> None:
        """Products of queries and a chunk's keys."""
        t, kernel = self.t, self.t.kernel
        lanes = Lanes.of_keys(kernel)

        def multiply(offsets: list[Value], places: list[tuple[Value, ...]], words: Buffer) -> None:
            sums = registers(self.heads * lanes.in_flight)
            for i in range(self.heads * lanes.in_flight):
                T.buffer_store(sums, T.float32(0), [i])
            for index in range(lanes.pieces * WORDS):
                numbers = self._numbers(lanes, words, index)
                for row in range(self.heads):
                    query, n = registers(lanes.per_word), lanes.per_word
                    at = T.int64(row * lanes.padded) + lanes.word(index // WORDS, index % WORDS, self.lane)
                    T.buffer_store(query, self.queries[T.ramp(at, 1, n) if n > 1 else at], [T.ramp(0, 1, n) if n > 1 else 0])
                    for u in range(lanes.in_flight):
                        at = row * lanes.in_flight + u
                        for j in range(n):
                            T.buffer_store(sums, sums[at] + query[j] * numbers[u * n + j], [at])
            distance = lanes.lanes // 2
            while distance:
                for i in range(self.heads * lanes.in_flight):
                    T.buffer_store(sums, sums[i] + from_lane(sums[i], distance), [i])
                distance //= 2
            with T.If(self.lane % lanes.lanes == T.int64(0)), T.Then():
                for u in range(lanes.in_flight):
                    scale = keep(t.scales[0][places[u]]) if t.scales else None
                    for row in range(self.heads):
                        value = sums[row * lanes.in_flight + u]
                        T.buffer_store(self.scores, value if scale is None else value * scale, [T.int64(row * CHUNK) + offsets[u]])

        self._each_step(chunk, lanes, t.pools[0], multiply)

    def weigh(self, chunk: Value) -> None:
        """A warp makes weights of a head's products: their exponents, less the highest. Keys that nobody sees weigh nothing."""
        t, kernel, per_lane = self.t, self.t.kernel, CHUNK // WARP
        low, high = self._bounds(chunk)

        def weigh_row(row: Value) -> None:
            values, total, highest = registers(per_lane), registers(), registers()
            T.buffer_store(highest, T.float32(LOWEST), [0])
            T.buffer_store(total, T.float32(0), [0])
            offsets = [self.lane + T.int64(i * WARP) for i in range(per_lane)]
            for i, offset in enumerate(offsets):
                value = self.scores[row * CHUNK + offset] * T.float32(kernel.scale)
                if kernel.softcap:
                    value = T.float32(kernel.softcap) * T.tanh(value * T.float32(1 / kernel.softcap))
                if t.slopes is not None:
                    value = value + t.slopes[self.head(row)] * T.cast(chunk * CHUNK + offset - self.position, "float32")
                is_seen = tvm.tirx.all(offset >= low, offset < high)
                T.buffer_store(values, T.Select(is_seen, keep(value), T.float32(LOWEST)), [i])
                T.buffer_store(highest, T.max(highest[0], values[i]), [0])
            top = over_warp(highest[0], T.max)
            for i, offset in enumerate(offsets):
                weight = keep(T.exp(values[i] - top))
                T.buffer_store(total, total[0] + weight, [0])
                T.buffer_store(self.scores, weight, [row * CHUNK + offset])
            everything = warp_sum(total[0])
            with T.If(self.lane == T.int64(0)), T.Then():
                T.buffer_store(self.stats, top, [row * 2])
                T.buffer_store(self.stats, everything, [row * 2 + T.int64(1)])

        self._each_row_of_warp(weigh_row)

    def sum_values(self, chunk: Value) -> None:
        """Each warp's sums of a chunk's values, by their weights."""
        t, kernel = self.t, self.t.kernel
        lanes = Lanes.of_values(kernel)
        n, per_row = lanes.per_word, lanes.pieces * lanes.piece
        sums = registers(self.heads * per_row)
        for i in range(self.heads * per_row):
            T.buffer_store(sums, T.float32(0), [i])

        def add(offsets: list[Value], places: list[tuple[Value, ...]], words: Buffer) -> None:
            weights = registers(self.heads * lanes.in_flight)
            for u in range(lanes.in_flight):
                scale = keep(t.scales[1][places[u]]) if t.scales else None
                for row in range(self.heads):
                    weight = self.scores[T.int64(row * CHUNK) + offsets[u]]
                    T.buffer_store(weights, weight if scale is None else weight * scale, [row * lanes.in_flight + u])
            for index in range(lanes.pieces * WORDS):
                numbers = self._numbers(lanes, words, index)
                for row in range(self.heads):
                    for u in range(lanes.in_flight):
                        for j in range(n):
                            at = row * per_row + index * n + j
                            T.buffer_store(sums, sums[at] + weights[row * lanes.in_flight + u] * numbers[u * n + j], [at])

        self._each_step(chunk, lanes, t.pools[1], add)
        distance = WARP // 2
        while distance >= lanes.lanes:
            for i in range(self.heads * per_row):
                T.buffer_store(sums, sums[i] + from_lane(sums[i], distance), [i])
            distance //= 2
        for piece in range(lanes.pieces):
            c = T.int64(piece * lanes.lanes) + self.lane
            is_there = tvm.tirx.all(self.lane < T.int64(lanes.lanes), c < T.int64(lanes.dim // lanes.piece))
            with T.If(is_there), T.Then():
                for row in range(self.heads):
                    for j in range(lanes.piece):
                        place = (self.warp * self.heads + T.int64(row)) * lanes.dim + c * lanes.piece + T.int64(j)
                        T.buffer_store(self.found, sums[row * per_row + piece * lanes.piece + j], [place])


class _Merged:
    """A thread's elements of the result, of the chunks that were merged: the highest score, and sums of weights and of weighted values.
    How they are rounded is written out, since chunks come here by two ways."""

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.count = -(-block.heads * block.t.kernel.value_dim // _THREADS)
        self.highest, self.totals, self.sums = (registers(self.count) for _ in range(3))
        for i in range(self.count):
            for held, value in ((self.highest, LOWEST), (self.totals, 0.0), (self.sums, 0.0)):
                T.buffer_store(held, T.float32(value), [i])

    def _take(self, j: int, highest: Value, total: Value, value: Value) -> None:
        new = keep(T.max(self.highest[j], highest))
        kept, weight = keep(T.exp(self.highest[j] - new)), keep(T.exp(highest - new))
        T.buffer_store(self.highest, new, [j])
        for held, added in ((self.totals, total), (self.sums, value)):
            T.buffer_store(held, T.call_extern("float32", "fmaf", held[j], kept, keep(added * weight)), [j])

    def leave_or_take(self, splits: Value, chunk: Value, j: int, row: Value, e: Value) -> None:
        """A chunk that this block has: it is left for who merges, or merged now."""
        block, dim, workspace = self.block, self.block.t.kernel.value_dim, self.block.t.workspace
        assert workspace is not None
        value = registers()
        T.buffer_store(value, T.float32(0), [0])
        for warp in range(WARPS):
            T.buffer_store(value, value[0] + block.found[(T.int64(warp * block.heads) + row) * dim + e], [0])
        highest, total = block.stats[row * 2], block.stats[row * 2 + T.int64(1)]
        with T.If(splits != T.int32(0)):
            with T.Then():
                place = (block.sequence, block.head(row), chunk)
                T.buffer_store(workspace, value[0], [*place, e])
                with T.If(e == T.int64(0)), T.Then():
                    T.buffer_store(workspace, highest, [*place, T.int64(dim)])
                    T.buffer_store(workspace, total, [*place, T.int64(dim + 1)])
            with T.Else():
                self._take(j, keep(highest), keep(total), value[0])

    def take_all(self, count: Value, j: int, row: Value, e: Value) -> None:
        """All chunks that blocks left."""
        block, dim, workspace = self.block, self.block.t.kernel.value_dim, self.block.t.workspace
        assert workspace is not None
        with T.serial(count) as i:
            highest, total, value = (
                keep(workspace[block.sequence, block.head(row), T.cast(i, "int64"), at]) for at in (T.int64(dim), T.int64(dim + 1), e)
            )
            self._take(j, highest, total, value)

    def finish(self, j: int, row: Value, e: Value) -> None:
        """Writes an element of the result."""
        block, kernel = self.block, self.block.t.kernel
        head = block.head(row)
        if block.t.sinks is not None:
            self._take(j, keep(block.t.sinks[head]), T.float32(1), T.float32(0))
        with T.If(block.first_head + row < T.int64(kernel.num_heads // kernel.num_kv_heads)), T.Then():
            store(block.t.out, (block.token, head * kernel.value_dim + e), self.sums[j] / self.totals[j])
