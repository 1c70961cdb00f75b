"""Paged attention: appends K/V to the pages, then attends over them, for prefill, decode and any mix of the two.

One call takes ragged sequences, in one parallel region of two steps. The first rotates and appends the new keys and
values. The second attends: in each group of query heads that share K/V, the (token, head) pairs are rows, and a task
takes a tile of rows of one sequence and reads each key and value once for all of them, in chunks of fixed size at fixed
positions. A sequence of few tokens (as in decoding) is cut into a task for each tile and chunk, whose states are folded by who
finishes a tile's last. Where every sequence brings one token, the task of its last chunk appends it: pages are shared only once
they are full, so no other task reads it, and what it writes to is then fetched once.
Per row all sums have one fixed order, so a result does not depend on the tile, on the batch, or on how a prompt was cut; with
tiles of bfloat16 this holds for sequences that bring up to FEW tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.attention_shape import attention_shape, call_attention
from cupola.targets.cost import with_cost
from cupola.targets.cpu.attention.amx import RowBlock
from cupola.targets.cpu.attention.amx import Scratch as RowScratch
from cupola.targets.cpu.attention.append import Append
from cupola.targets.cpu.attention.chunk import numbers_of, run_chunk
from cupola.targets.cpu.attention.copies import copy_chunk
from cupola.targets.cpu.attention.latent_chunk import LatentChunk
from cupola.targets.cpu.attention.row_tile import Ahead, State, Tile
from cupola.targets.cpu.attention.shape import BLOCK_TILES, Kernel, Tensors
from cupola.targets.cpu.attention.tile_block import TileBlock
from cupola.targets.cpu.attention.tile_keys import TileKeys
from cupola.targets.cpu.emit.amx import MANY
from cupola.targets.cpu.emit.dot import bf16_dots
from cupola.targets.cpu.emit.loops import Claims, Parts, Threads, parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, argument, local, name, prim_func
from cupola.targets.cpu.isa import ISA
from cupola.targets.ops import PagedAttention

TASKS = 4  # for each thread, at least, if there are so many tiles
FEW = MANY - 1  # tokens of a sequence that are attended to as one is; of linear layers so many rows have the bits of one, too


def lower_paged_attention(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`PagedAttention` with K/V pages in float32, float16, bfloat16 or int8."""
    op = PagedAttention.match(call)
    if op is None or op.kv_dtype not in ("float32", "float16", "bfloat16", "int8"):
        return None
    kernel = _kernel_of(isa, op, call.ty)
    return call_attention(_build(kernel), kernel.label, op, call.ty, builder)


def _kernel_of(isa: ISA, op: PagedAttention, out: relax.TensorType) -> Kernel:
    if op.v is None:
        *_, block_size, key_dim = (getattr(size, "value", 0) for size in op.pools[0].ty.shape)
        return Kernel(**vars(attention_shape(op, out, 1, key_dim, 0, block_size)), isa=isa)
    k_pages, v_pages, *scales = op.pools
    _, _, groups, *key_page = (getattr(size, "value", 0) for size in k_pages.ty.shape)
    side = 2 if scales else 1
    value_dim = int(v_pages.ty.shape[4]) // side
    return Kernel(**vars(attention_shape(op, out, groups, key_page[0] * side, value_dim, key_page[1] // side)), isa=isa)


@cache
def _build(kernel: Kernel) -> tvm.tirx.PrimFunc:
    k = kernel

    def body() -> None:
        n, batch, layers, blocks, max_blocks = (T.int64() for _ in range(5))
        pages = (layers, blocks, k.num_kv_heads)
        matrices = [argument(label, (n, columns), dtype) for label, columns, dtype in zip("qkv", k.columns, k.dtypes, strict=False)]
        cos, sin = (argument(label, (n, k.rotary_dim), k.angle_dtype) if k.rotary_dim else None for label in ("cos", "sin"))
        pools = _pools(k, pages)
        tensors = Tensors(
            kernel=k,
            simd=Simd(k.isa),
            q=matrices[0],
            k=matrices[1],
            v=None if k.is_latent else matrices[2],
            cos=cos,
            sin=sin,
            k_pages=pools[0],
            v_pages=pools[1],
            k_scales=pools[2] if k.is_quantized else None,
            v_scales=pools[3] if k.is_quantized else None,
            slots=argument("slots", (n,), "int32"),
            query_starts=argument("query_starts", (T.int64(),), "int32"),
            context_lens=argument("context_lens", (batch,), "int32"),
            block_tables=argument("block_tables", (batch, max_blocks), "int32"),
            slopes=argument("slopes", (k.num_heads,), "float32") if k.has_slopes else None,
            sinks=argument("sinks", (k.num_heads,), "float32") if k.has_sinks else None,
            layer=T.arg("layer", T.int64()),
            out=argument("out", (n, k.num_heads * k.value_dim), k.out_dtype),
            sizes=(n, batch, blocks, max_blocks),
        )
        with bf16_dots() if k.pairs_bf16 else nullcontext():
            _attend(_in_pairs(tensors) if k.pairs_bf16 else tensors)

    return with_cost(prim_func(body), KernelCost("bfloat16" if k.in_tiles or k.pairs_bf16 else "float32"))


def _pools(k: Kernel, blocks: tuple[Value | int, ...]) -> list[Buffer]:
    """Pages of keys and of values, and of codes their scales; of latents the same twice."""
    side = 2 if k.is_quantized else 1
    pages = {"k_pages": (k.key_dim // side, k.block_size * side), "v_pages": (k.block_size // side, k.value_dim * side)}
    pages, scales = ({"latents": (k.block_size, k.key_dim)}, ["latent_scales"]) if k.is_latent else (pages, ["k_scales", "v_scales"])
    pools = [argument(label, (*blocks, *page), k.kv_dtype) for label, page in pages.items()]
    pools += [argument(label, (*blocks, k.block_size), "float32") for label in scales if k.is_quantized]
    return [pool for pool in pools for _ in "kv"] if k.is_latent else pools


def _in_pairs(t: Tensors) -> Tensors:
    """The same with pages of bfloat16 as pairs lie in them."""

    def pairs(pages: Buffer) -> Buffer:
        *blocks, rows, columns = pages.shape
        return T.decl_buffer((*blocks, rows // 2, columns * 2), pages.dtype, data=pages.data, align=1)

    return replace(t, k_pages=pairs(t.k_pages), v_pages=pairs(t.v_pages))


def _attend(t: Tensors) -> None:
    kernel, (n, batch, _, max_blocks) = t.kernel, t.sizes
    tile_keys = TileKeys.allocate(t) if kernel.in_tiles else None
    threads = Threads.of_region()
    task_rows = _task_rows(kernel, n, threads)
    first_tiles, first_chunks = (T.alloc_buffer((batch + 1,), "int64") for _ in range(2))
    appends_first = local(1, "bool")  # whether new keys and values are there before any task attends
    T.buffer_store(appends_first, T.bool(kernel.token_rows < kernel.heads_per_group), [0])
    T.buffer_store(first_tiles, T.int64(0), [T.int64(0)])
    T.buffer_store(first_chunks, T.int64(0), [T.int64(0)])
    with T.serial(batch) as sequence:
        work = _Work.of(t, sequence, task_rows)
        count = name(work.per_group * kernel.num_kv_heads)
        with T.If(work.num_tokens != T.int64(1)), T.Then():
            T.buffer_store(appends_first, T.bool(True), [0])
        T.buffer_store(first_tiles, first_tiles[sequence] + T.Select(work.is_split, T.int64(0), count), [sequence + 1])
        T.buffer_store(first_chunks, first_chunks[sequence] + T.Select(work.is_split, count, T.int64(0)), [sequence + 1])
        if tile_keys is not None:
            tile_keys.count(sequence, work.is_split, work.begin)
    few = T.min(n, batch * FEW)  # tokens of split sequences, at most
    tiles = kernel.num_kv_heads * (few * kernel.heads_per_group // kernel.tile_rows + batch)
    chunks = max_blocks * kernel.block_size // kernel.chunk + 1
    states = T.alloc_buffer((tiles * chunks * kernel.state_size(kernel.tile_rows),), "float32")
    if tile_keys is not None:  # TVM must not give both the same memory: no barrier stands between their last and their first use
        T.buffer_store(states, T.float32(0), [T.int64(0)])
    count = name(first_tiles[batch])
    claims, chunk_claims = Claims.allocate(threads, count), Claims.allocate(threads, name(first_chunks[batch]))
    parts = Parts.allocate(name(first_chunks[batch]), tiles * chunks)
    with parallel_region():
        attend = _Attend(t, first_tiles, first_chunks, task_rows, states, parts, appends_first)
        with T.If(appends_first[0]), T.Then(), threads.each() as thread:
            append = Append.of_thread(t)
            with threads.share(thread, n * kernel.num_kv_heads) as i:
                append.run(name(i // kernel.num_kv_heads), name(i % kernel.num_kv_heads))
        if tile_keys is not None:
            strips = tile_keys.first_strips[batch]
            with T.If(strips > T.int64(0)), T.Then(), shared_loop(strips * kernel.num_kv_heads) as i:
                attend.load_strip(tile_keys, name(i // kernel.num_kv_heads), name(i % kernel.num_kv_heads))
        if tile_keys is not None:
            with threads.each(barrier=False) as thread:
                rows = RowScratch.allocate(kernel)
                with claims.each(thread) as task:
                    attend.row_block(tile_keys, rows, task)
        else:
            with threads.each(barrier=False) as thread, claims.each(thread) as task:
                attend.tile_block(task)
        with threads.each(barrier=False) as thread:
            attend.fetch_first(name(threads.first(thread, chunk_claims.count)), chunk_claims.count)
            with chunk_claims.each(thread) as task:
                attend.one_chunk(task)


def _task_rows(kernel: Kernel, num_tokens: Value, threads: Threads) -> Value:
    """Rows of a task of a sequence of several tokens: fewer for many threads, unless they come in tiles of bfloat16."""
    if kernel.in_tiles:
        return T.int64(kernel.task_rows)
    tiles = num_tokens * kernel.heads_per_group // kernel.tile_rows * kernel.num_kv_heads
    return name(T.max(T.int64(1), T.min(tiles // (threads.count * TASKS), T.int64(BLOCK_TILES))) * kernel.tile_rows)


@dataclass(frozen=True)
class _Work:
    """How a sequence's rows are cut.

    Attributes:
        begin: the first position that some row sees.
        is_split: whether each chunk of keys is a task of its own, a tile at a time: where there are few tokens.
        per_group: tasks for each K/V head.
    """

    num_tokens: Value
    num_tiles: Value
    begin: Value
    first_chunk: Value
    num_chunks: Value
    is_split: Value
    per_group: Value

    @staticmethod
    def of(t: Tensors, sequence: Value, task_rows: Value) -> _Work:
        kernel = t.kernel
        tokens, context = name(t.num_tokens(sequence)), name(t.context(sequence))
        rows = name(tokens * kernel.heads_per_group)
        tiles = name((rows + kernel.tile_rows - 1) // kernel.tile_rows)
        begin = name(T.max(T.int64(0), context - tokens + 1 - kernel.window)) if kernel.window else T.int64(0)
        first = name(begin // kernel.chunk)
        chunks = name((context + kernel.chunk - 1) // kernel.chunk - first)
        is_split = tokens <= T.int64(FEW)
        tasks = (rows + task_rows - 1) // task_rows
        return _Work(tokens, tiles, begin, first, chunks, is_split, name(T.Select(is_split, tiles * chunks, tasks)))


@dataclass(frozen=True)
class _Attend:
    """The tasks: tiles over all their chunks, and (tile, chunk, group) of split sequences. `first_…` count those of sequences before."""

    tensors: Tensors
    first_tiles: Buffer
    first_chunks: Buffer
    task_rows: Value
    states: Buffer
    parts: Parts
    appends_first: Buffer

    def work(self, sequence: Value) -> _Work:
        return _Work.of(self.tensors, sequence, self.task_rows)

    def sequence_of(self, task: Value, first_tasks: Buffer) -> Value:
        found = local(1, "int64")
        T.buffer_store(found, T.int64(0), [0])
        with T.While(first_tasks[found[0] + 1] <= task):
            T.buffer_store(found, found[0] + 1, [0])
        return name(found[0])

    def place(self, task: Value, first_tasks: Buffer) -> tuple[Value, Value, Value]:
        """The sequence, the group and the number in its group of a task."""
        groups, sequence = self.tensors.kernel.num_kv_heads, self.sequence_of(task, first_tasks)
        index = name(task - first_tasks[sequence])
        return sequence, name(index % groups), name(index // groups)

    def tile(self, work: _Work, num_rows: int, sequence: Value, group: Value, index: Value) -> Tile:
        return Tile(self.tensors, num_rows, sequence, group, work.num_tokens, name(index * num_rows))

    def for_tile(self, work: _Work, sequence: Value, group: Value, index: Value, body: Callable[[Tile], None]) -> None:
        """`body` for a tile of a split sequence, which has fewer rows for one token."""
        kernel = self.tensors.kernel
        if kernel.token_rows == kernel.tile_rows:
            return body(self.tile(work, kernel.tile_rows, sequence, group, index))
        with T.If(work.num_tokens == T.int64(1)):
            for branch, rows in ((T.Then, kernel.token_rows), (T.Else, kernel.tile_rows)):
                with branch():
                    body(self.tile(work, rows, sequence, group, index))
        return None

    def fetch_first(self, task: Value, num_tasks: Value) -> None:
        """Asks for the pages of a thread's first chunk, which nothing was ahead of."""
        t, kernel = self.tensors, self.tensors.kernel
        with T.If(task < num_tasks), T.Then():
            sequence, group, _, chunk, _ = self.chunk(task)
            first, end = name(chunk * kernel.chunk), t.context(sequence)
            count = name((T.min(end - first, T.int64(kernel.chunk)) + kernel.block_size - 1) // kernel.block_size)
            for pool in t.pools:
                with T.serial(count) as i:
                    block, _ = t.place_of(sequence, name(first + i * kernel.block_size))
                    t.simd.prefetch_all(pool, (t.layer, block, group), near=2)

    def one_chunk(self, task: Value) -> None:
        sequence, group, index, chunk, work = self.chunk(task)
        after, next_group, _, next_chunk, _ = self.chunk(name(T.min(task + 1, self.first_chunks[self.tensors.sizes[1]] - 1)))
        ahead = Ahead(after, next_group, name(next_chunk * self.tensors.kernel.chunk))
        is_last = chunk == work.first_chunk + work.num_chunks - 1
        with T.If(T.And(is_last, T.Not(self.appends_first[0]))), T.Then():
            Append(self.tensors).single(name(T.cast(self.tensors.query_starts[sequence], "int64")), group)
        first = name(self.first_chunks[sequence] + index * work.num_chunks * self.tensors.kernel.num_kv_heads + group)

        def run(tile: Tile) -> None:
            if tile.kernel.decodes_in_tiles:
                LatentChunk.of(tile).run(chunk, self.state(task), ahead)
            else:
                numbers = numbers_of(tile)
                numbers.load_queries()
                copy_chunk(numbers, chunk, tile.keys(), ahead)
                run_chunk(numbers, chunk, self.state(task), ahead)
            with self.parts.last(first, work.num_chunks):
                self.merge(tile, first, work.num_chunks)

        self.for_tile(work, sequence, group, index, run)

    def chunk(self, task: Value) -> tuple[Value, Value, Value, Value, _Work]:
        """The sequence, the group, the number of the tile, the chunk of a task of one chunk, and how the sequence is cut."""
        sequence, group, place = self.place(task, self.first_chunks)
        work = self.work(sequence)
        return sequence, group, name(place // work.num_chunks), name(work.first_chunk + place % work.num_chunks), work

    def load_strip(self, keys: TileKeys, strip: Value, group: Value) -> None:
        """Brings keys and values into the form of tiles."""
        sequence = self.sequence_of(strip, keys.first_strips)
        keys.load(sequence, group, strip, self.work(sequence).begin)

    def row_block(self, keys: TileKeys, rows: RowScratch, task: Value) -> None:
        """Many rows by tiles of bfloat16."""
        sequence, group, index = self.place(task, self.first_tiles)
        work = self.work(sequence)
        RowBlock(keys, rows, sequence, group, work.num_tokens, name(index * self.task_rows), work.begin).run()

    def tile_block(self, task: Value) -> None:
        """Many rows by tiles that take turns."""
        sequence, group, index = self.place(task, self.first_tiles)
        work = self.work(sequence)
        index = name(work.per_group - 1 - index)  # first those that see the most
        TileBlock(self.tensors, sequence, group, work.num_tokens, name(index * self.task_rows), self.task_rows).run()

    def merge(self, tile: Tile, first: Value, num_chunks: Value) -> None:
        """Folds the states of a tile's chunks, of which the first is that of task `first`, and writes its rows."""
        running = State(local(tile.kernel.state_size(tile.num_rows)))
        tile.start(running)
        with T.serial(num_chunks) as chunk:
            tile.fold(running, self.state(first + chunk * tile.kernel.num_kv_heads))
        tile.finish(running)

    def state(self, index: Value) -> State:
        kernel = self.tensors.kernel
        return State(self.states, name(index * kernel.state_size(kernel.tile_rows)))
