"""Paged attention: appends K/V to the pages, then attends over them, for prefill, decode and any mix of the two.

One call takes ragged sequences. In each group of query heads that share K/V, the (token, head) pairs are rows; a task
takes a tile of rows of one sequence and reads each key and value once for all of them. It goes over the keys in chunks
of fixed size, at fixed positions, with an online softmax (arXiv:1805.02867, arXiv:2205.14135). Per row the order of all
sums is fixed, and keys that a row does not see add exactly zero, so a row's result does not depend on its tile, on the
batch, or on how a prompt was cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact import Work
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.loops import between
from cupola.targets.cpu.simd import Buffer, Register, Simd, Value, argument, iota, local, name, pieces, prim_func, splat, tree
from cupola.targets.ops import PagedAttention
from cupola.targets.work import with_work

CHUNK = 64  # keys a softmax step takes; pages of another size bring it to a whole number of pages, or parts of one
TILE_ROWS = 6  # rows of a prefill tile
MAX_DECODE_ROWS = 8
HIDDEN = -1e30  # the score of a key that a row does not see; finite, so that no infinities are subtracted
PARALLEL_WRITES_FROM = 8  # tokens


@dataclass(frozen=True)
class _Kernel:
    isa: ISA
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    block_size: int
    kv_dtype: str
    scale: float
    window: int
    softcap: float
    has_slopes: bool
    has_sinks: bool

    @property
    def heads_per_group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def decode_rows(self) -> int:
        return min(self.heads_per_group, MAX_DECODE_ROWS)

    @cached_property
    def chunk(self) -> int:
        """Keys a chunk: a multiple of the vector, and of the block or a divisor of it if that is possible."""
        block, lanes = self.block_size, self.isa.lanes
        if block <= CHUNK:
            return CHUNK // block * block if block % lanes == 0 else CHUNK
        return max((size for size in range(lanes, CHUNK + 1, lanes) if block % size == 0), default=CHUNK)

    @property
    def keys_in_vectors(self) -> bool:
        """Whether a vector of keys lies in one page. Otherwise the chunk's keys are first copied together."""
        return self.block_size % self.isa.lanes == 0

    @property
    def run(self) -> int:
        """Keys of a chunk that certainly lie side by side in a page."""
        return math.gcd(self.block_size, self.chunk)

    def vectors_beside(self, rows: int, available: int) -> int:
        """Vectors of columns that fit the registers beside `rows` rows of accumulators."""
        return max(size for size in (1, 2, 4) if size == 1 or (size <= available and (rows + 1) * size + 1 <= self.isa.num_registers))


def lower_paged_attention(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`PagedAttention` with float32 queries and K/V pages in float32, float16 or bfloat16."""
    op = PagedAttention.match(call)
    if op is None or op.k_pages.ty.dtype not in ("float32", "float16", "bfloat16"):
        return None
    (heads, key_dim), (groups, value_dim) = (tuple(int(size) for size in list(x.ty.shape)[1:]) for x in (op.q, op.v))
    block, kv_dtype = int(op.k_pages.ty.shape[4]), str(op.k_pages.ty.dtype)
    options = (op.scale, op.window, op.softcap, op.slopes is not None, op.sinks is not None)
    kernel = _Kernel(isa, heads, groups, key_dim, value_dim, block, kv_dtype, *options)
    arguments = [op.q, op.k, op.v, op.k_pages, op.v_pages, op.slots, op.query_starts, op.context_lens, op.block_tables]
    arguments += [extra for extra in (op.slopes, op.sinks) if extra is not None]
    gv = builder.add_func(_build(kernel), f"paged_attention_{heads}x{groups}x{key_dim}_{kv_dtype}")
    layer = relax.prim_value(tvm.tirx.IntImm("int64", op.layer))  # an argument, so that all layers share one kernel
    return relax.op.call_tir(gv, relax.Tuple([*arguments, layer]), out_ty=call.ty)


@cache
def _build(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    k = kernel

    def body() -> None:
        n, batch, layers, blocks, max_blocks = (T.int64() for _ in range(5))
        attention = _Attention(
            kernel=k,
            simd=Simd(k.isa),
            q=argument("q", (n, k.num_heads, k.key_dim), "float32"),
            k=argument("k", (n, k.num_kv_heads, k.key_dim), "float32"),
            v=argument("v", (n, k.num_kv_heads, k.value_dim), "float32"),
            k_pages=argument("k_pages", (layers, blocks, k.num_kv_heads, k.key_dim, k.block_size), k.kv_dtype),
            v_pages=argument("v_pages", (layers, blocks, k.num_kv_heads, k.block_size, k.value_dim), k.kv_dtype),
            slots=argument("slots", (n,), "int32"),
            query_starts=argument("query_starts", (T.int64(),), "int32"),
            context_lens=argument("context_lens", (batch,), "int32"),
            block_tables=argument("block_tables", (batch, max_blocks), "int32"),
            slopes=argument("slopes", (k.num_heads,), "float32") if k.has_slopes else None,
            sinks=argument("sinks", (k.num_heads,), "float32") if k.has_sinks else None,
            layer=T.arg("layer", T.int64()),
            out=argument("out", (n, k.num_heads, k.value_dim), "float32"),
            sizes=(n, batch, blocks, max_blocks),
        )
        attention.append()
        attention.attend()

    return with_work(prim_func(body), Work(operations_per_pair=2 * k.num_heads * (k.key_dim + k.value_dim), window=k.window))


@dataclass(frozen=True)
class _Attention:
    """The arguments of one kernel. `sizes` are tokens, sequences, blocks of the pool, and blocks of a table's row."""

    kernel: _Kernel
    simd: Simd
    q: Buffer
    k: Buffer
    v: Buffer
    k_pages: Buffer
    v_pages: Buffer
    slots: Buffer
    query_starts: Buffer
    context_lens: Buffer
    block_tables: Buffer
    slopes: Buffer | None
    sinks: Buffer | None
    layer: Value
    out: Buffer
    sizes: tuple[Value, Value, Value, Value]

    def append(self) -> None:
        """Writes the new tokens' keys and values to their slots; a negative slot is skipped."""
        n = self.sizes[0]
        with T.If(n < T.int64(PARALLEL_WRITES_FROM)):
            with T.Then(), T.serial(n) as token:
                self.append_token(token)
            with T.Else(), T.parallel(n) as token:
                self.append_token(token)

    def append_token(self, token: Value) -> None:
        kernel, simd = self.kernel, self.simd
        slot = name(T.cast(self.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then(), T.serial(kernel.num_kv_heads) as group:
            block, offset = name(slot // kernel.block_size), name(slot % kernel.block_size)
            with T.serial(kernel.key_dim) as d:
                simd.store(self.k_pages, simd.load(self.k, (token, group, d), 1), (self.layer, block, group, d, offset))
            for start, lanes in pieces(kernel.value_dim, simd.lanes):
                simd.store(self.v_pages, simd.load(self.v, (token, group, start), lanes), (self.layer, block, group, offset, start))

    def attend(self) -> None:
        """Cuts every sequence's rows into tiles and runs them in parallel."""
        kernel, batch = self.kernel, self.sizes[1]
        first_tiles = T.alloc_buffer((batch + 1,), "int64")
        T.buffer_store(first_tiles, T.int64(0), [T.int64(0)])
        with T.serial(batch) as sequence:
            rows = name(self.num_tokens(sequence) * kernel.heads_per_group)
            T.buffer_store(first_tiles, first_tiles[sequence] + self.num_tiles(rows), [sequence + 1])
        num_tasks = name(first_tiles[batch] * kernel.num_kv_heads)
        with T.parallel(num_tasks) as task:
            # Causal tiles cost more the later they stand: pairing both ends gives every thread the same share.
            paired = name(T.Select(task % 2 == 0, task // 2, num_tasks - 1 - task // 2))
            tile, group = name(paired // kernel.num_kv_heads), name(paired % kernel.num_kv_heads)
            self.task(self.sequence_of(tile, first_tiles), tile, group, first_tiles)

    def num_tokens(self, sequence: Value) -> Value:
        return T.cast(self.query_starts[sequence + 1] - self.query_starts[sequence], "int64")

    def num_tiles(self, rows: Value) -> Value:
        """Long runs of rows go in tiles of TILE_ROWS, short ones (decode) token by token."""
        kernel = self.kernel
        per_token = -(-kernel.heads_per_group // kernel.decode_rows)
        return T.Select(rows >= T.int64(TILE_ROWS), (rows + TILE_ROWS - 1) // TILE_ROWS, rows // kernel.heads_per_group * per_token)

    def sequence_of(self, tile: Value, first_tiles: Buffer) -> Value:
        found = local(1, "int64")
        T.buffer_store(found, T.int64(0), [0])
        with T.While(first_tiles[found[0] + 1] <= tile):
            T.buffer_store(found, found[0] + 1, [0])
        return name(found[0])

    def task(self, sequence: Value, tile: Value, group: Value, first_tiles: Buffer) -> None:
        kernel = self.kernel
        heads, decode = kernel.heads_per_group, kernel.decode_rows
        tokens, index = name(self.num_tokens(sequence)), name(tile - first_tiles[sequence])
        rows = name(tokens * heads)
        with T.If(rows >= T.int64(TILE_ROWS)):
            with T.Then():
                owned = name(index * TILE_ROWS)
                _Tile(self, TILE_ROWS, sequence, group, tokens, name(T.min(owned, rows - TILE_ROWS)), owned).run()
            with T.Else():
                per_token = -(-heads // decode)
                start = name(index // per_token * heads)
                owned = name(start + index % per_token * decode)
                _Tile(self, decode, sequence, group, tokens, name(T.min(owned, start + heads - decode)), owned).run()


@dataclass(frozen=True)
class _Tile:
    """`num_rows` rows of a sequence from row `first` on.

    The last tile reaches back over rows of the one before, and writes only those it owns.
    """

    attention: _Attention
    num_rows: int
    sequence: Value
    group: Value
    num_tokens: Value
    first: Value
    owned: Value

    def run(self) -> None:
        kernel = self.attention.kernel
        queries, scores = local((self.num_rows, kernel.key_dim)), local((self.num_rows, kernel.chunk))
        maxima, totals = (local(self.num_rows) for _ in range(2))
        sums = local((self.num_rows, kernel.value_dim))
        keys = None if kernel.keys_in_vectors else local((kernel.key_dim, kernel.chunk))
        end = name(self.position(self.num_rows - 1) + 1)
        begin = name(T.max(T.int64(0), self.position(0) + 1 - kernel.window)) if kernel.window else T.int64(0)
        with T.serial(self.num_rows) as row:
            self.start(row, queries, maxima, totals, sums)
        with between(begin // kernel.chunk, (end + kernel.chunk - 1) // kernel.chunk) as chunk:
            at = name(chunk * kernel.chunk)
            if keys is not None:
                self.gather_keys(at, end, keys)
            self.score(at, queries, keys, scores)
            with T.serial(self.num_rows) as row:
                self.softmax(row, at, scores, maxima, totals, sums)
            low, high = name(T.max(begin - at, T.int64(0))), name(T.min(end - at, T.int64(kernel.chunk)))
            self.add_values(at, low, high, scores, sums)
        with T.serial(self.num_rows) as row, T.If(self.first + row >= self.owned), T.Then():
            self.finish(row, totals, sums)

    def position(self, row: Value | int) -> Value:
        """Where in its sequence a row of the tile stands."""
        context = T.cast(self.attention.context_lens[self.sequence], "int64")
        return name(context - self.num_tokens + (self.first + row) // self.attention.kernel.heads_per_group)

    def token_and_head(self, row: Value | int) -> tuple[Value, Value]:
        """Where a row of the tile stands in q and out."""
        a, heads = self.attention, self.attention.kernel.heads_per_group
        token = T.cast(a.query_starts[self.sequence], "int64") + (self.first + row) // heads
        return name(token), name(self.group * heads + (self.first + row) % heads)

    def start(self, row: Value, queries: Buffer, maxima: Buffer, totals: Buffer, sums: Buffer) -> None:
        """Scaled queries; a sink counts as a first key whose value is zero."""
        a, kernel, simd = self.attention, self.attention.kernel, self.attention.simd
        token, head = self.token_and_head(row)
        for start, lanes in pieces(kernel.key_dim, simd.lanes):
            simd.store(queries, simd.load(a.q, (token, head, start), lanes) * splat(kernel.scale, lanes), (row, start))
        for start, lanes in pieces(kernel.value_dim, simd.lanes):
            simd.store(sums, splat(0.0, lanes), (row, start))
        T.buffer_store(maxima, T.float32(HIDDEN) if a.sinks is None else a.sinks[head], [row])
        T.buffer_store(totals, T.float32(0.0 if a.sinks is None else 1.0), [row])

    def block_of(self, position: Value) -> Value:
        """The block that holds a position. Positions that are never used (before the window, past the end) give some block of the pool."""
        a = self.attention
        _, _, blocks, max_blocks = a.sizes
        column = T.min(position // a.kernel.block_size, max_blocks - 1)
        return name(T.max(T.int64(0), T.min(T.cast(a.block_tables[self.sequence, column], "int64"), blocks - 1)))

    def gather_keys(self, at: Value, end: Value, keys: Buffer) -> None:
        """Copies a chunk's keys together, for pages that do not hold whole vectors."""
        a, kernel = self.attention, self.attention.kernel
        with T.serial(kernel.chunk) as i:
            position = name(T.min(at + i, end - 1))
            block, offset = self.block_of(position), name(position % kernel.block_size)
            with T.serial(kernel.key_dim) as d:
                a.simd.store(keys, a.simd.load(a.k_pages, (a.layer, block, self.group, d, offset), 1), (d, i))

    def score(self, at: Value, queries: Buffer, keys: Buffer | None, scores: Buffer) -> None:
        """queries · keys of a chunk, several vectors of keys at a time."""
        kernel, lanes = self.attention.kernel, self.attention.simd.lanes
        vectors = kernel.vectors_beside(self.num_rows, kernel.chunk // lanes)
        while kernel.chunk // lanes % vectors:
            vectors //= 2
        with T.serial(kernel.chunk // lanes // vectors) as part:
            starts = [name((part * vectors + vector) * lanes) for vector in range(vectors)]
            self.score_vectors(at, starts, queries, keys, scores)

    def score_vectors(self, at: Value, starts: list[Value], queries: Buffer, keys: Buffer | None, scores: Buffer) -> None:
        a, kernel, simd = self.attention, self.attention.kernel, self.attention.simd
        lanes = simd.lanes
        places = [(self.block_of(at + start), name((at + start) % kernel.block_size)) for start in starts] if keys is None else []
        dots = [[Register(lanes) for _ in starts] for _ in range(self.num_rows)]
        with T.serial(kernel.key_dim) as d:
            if keys is None:
                loaded = [simd.load(a.k_pages, (a.layer, block, self.group, d, offset)) for block, offset in places]
            else:
                loaded = [simd.load(keys, (d, start)) for start in starts]
            for row in range(self.num_rows):
                query = name(splat(queries[row, d], lanes))
                for dot, key in zip(dots[row], loaded, strict=True):
                    dot.set(simd.fma(query, key, dot.get()))
        for row in range(self.num_rows):
            for dot, start in zip(dots[row], starts, strict=True):
                simd.store(scores, dot.get(), (row, start))

    def masked(self, score: Value, row: Value, distance: Value) -> Value:
        """Soft cap, ALiBi (arXiv:2108.12409) and the causal window, on scores of keys `distance` (≤ 0 if seen) after the query."""
        a, kernel, simd = self.attention, self.attention.kernel, self.attention.simd
        lanes = simd.lanes
        if kernel.softcap:
            score = simd.tanh(score * splat(1 / kernel.softcap, lanes)) * splat(kernel.softcap, lanes)
        if a.slopes is not None:
            score = simd.fma(splat(a.slopes[self.token_and_head(row)[1]], lanes), T.cast(distance, f"float32x{lanes}"), score)
        score = T.Select(distance <= T.broadcast(T.int32(0), lanes), name(score), splat(HIDDEN, lanes))
        if kernel.window:
            score = T.Select(distance > T.broadcast(T.int32(-kernel.window), lanes), score, splat(HIDDEN, lanes))
        return name(score)

    def softmax(self, row: Value, at: Value, scores: Buffer, maxima: Buffer, totals: Buffer, sums: Buffer) -> None:
        """Scores of a row become weights relative to the new maximum, and its older sums shrink by as much as the maximum grew."""
        kernel, simd = self.attention.kernel, self.attention.simd
        lanes = simd.lanes
        starts = range(0, kernel.chunk, lanes)
        distance = name(T.cast(at - self.position(row), "int32"))
        vectors = [self.masked(simd.load(scores, (row, start)), row, name(iota(distance + start, lanes))) for start in starts]
        highest = vectors[0]
        for vector in vectors[1:]:
            highest = name(T.max(highest, vector))
        old = name(maxima[row])
        new = name(T.max(old, tree(highest, T.max)))
        decay = name(simd.exp(old - new))
        total = splat(0.0, lanes)
        for vector, start in zip(vectors, starts, strict=True):
            seen = vector > splat(HIDDEN / 2, lanes)
            weight = name(T.Select(seen, simd.exp(vector - splat(new, lanes)), splat(0.0, lanes)))
            simd.store(scores, weight, (row, start))
            total = name(total + weight)
        T.buffer_store(maxima, new, [row])
        T.buffer_store(totals, simd.fma(name(totals[row]), decay, tree(total, lambda x, y: x + y)), [row])
        for start, width in pieces(kernel.value_dim, lanes):
            simd.store(sums, simd.load(sums, (row, start), width) * splat(decay, width), (row, start))

    def add_values(self, at: Value, low: Value, high: Value, weights: Buffer, sums: Buffer) -> None:
        """sums += weights @ values, over the keys `low` to `high` of the chunk: others were perhaps never written."""
        kernel = self.attention.kernel
        columns = pieces(kernel.value_dim, self.attention.simd.lanes)
        beside = kernel.vectors_beside(self.num_rows, 4)
        for first in range(0, len(columns), beside):
            self.add_value_columns(at, low, high, columns[first : first + beside], weights, sums)

    def add_value_columns(self, at: Value, low: Value, high: Value, columns: list[tuple[int, int]], weights: Buffer, sums: Buffer) -> None:
        a, kernel, simd = self.attention, self.attention.kernel, self.attention.simd
        totals = [[Register(lanes, None) for _, lanes in columns] for _ in range(self.num_rows)]
        for row in range(self.num_rows):
            for total, (start, lanes) in zip(totals[row], columns, strict=True):
                total.set(simd.load(sums, (row, start), lanes))
        with between(low // kernel.run, (high + kernel.run - 1) // kernel.run) as run:
            position = name(at + run * kernel.run)
            block, offset = self.block_of(position), name(position % kernel.block_size)
            with between(T.max(low - run * kernel.run, T.int64(0)), T.min(high - run * kernel.run, T.int64(kernel.run))) as i:
                values = [simd.load(a.v_pages, (a.layer, block, self.group, offset + i, start), lanes) for start, lanes in columns]
                for row in range(self.num_rows):
                    weight = name(weights[row, run * kernel.run + i])
                    for total, value in zip(totals[row], values, strict=True):
                        total.set(simd.fma(splat(weight, total.lanes), value, total.get()))
        for row in range(self.num_rows):
            for total, (start, _) in zip(totals[row], columns, strict=True):
                simd.store(sums, total.get(), (row, start))

    def finish(self, row: Value, totals: Buffer, sums: Buffer) -> None:
        a, simd = self.attention, self.attention.simd
        token, head = self.token_and_head(row)
        inverse = name(T.float32(1) / totals[row])
        for start, lanes in pieces(a.kernel.value_dim, simd.lanes):
            simd.store(a.out, simd.load(sums, (row, start), lanes) * splat(inverse, lanes), (token, head, start))
