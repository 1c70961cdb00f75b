"""Paged attention over the generic layout: appends new keys and values, then takes the keys of each row in order (online softmax,
arXiv:1805.02867)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.attention_shape import AttentionShape, attention_shape, call_attention
from cupola.targets.emit import Buffer, Value, argument, e4m3_to_f32, f32_to_e4m3, local, name, prim_func
from cupola.targets.generic.loops import code_of, each, largest, load, step_of, store, total
from cupola.targets.generic.rows import rotate
from cupola.targets.ops import PagedAttention

_LOWEST = -3.0e38  # of a maximum before there is one


@dataclass(frozen=True)
class AttentionTensors:
    """The arguments. `angles` are cosines and sines; `pools` are of keys and, unless these lie in keys, of values, `scales` of the same;
    `workspace` is scratch memory of kernels that ask for it."""

    kernel: AttentionShape
    n: Value
    batch: Value
    matrices: list[Buffer]
    angles: tuple[Buffer, Buffer] | None
    pools: list[Buffer]
    scales: list[Buffer]
    slots: Buffer
    query_starts: Buffer
    context_lens: Buffer
    block_tables: Buffer
    slopes: Buffer | None
    sinks: Buffer | None
    workspace: Buffer | None
    layer: Value
    out: Buffer

    def scale(self, which: int, place: tuple[Value, ...]) -> Value | None:
        """The scale of a key's (0) or a value's (1) codes, if they are codes."""
        return self.scales[min(which, len(self.scales) - 1)][place] if self.scales else None

    def number(self, load: Callable[..., Value], which: int, *place: Value) -> Value:
        """An element of the pool of keys (0) or of values (1) as float32; `load` reads those of floats and codes."""
        pool = self.pools[min(which, len(self.pools) - 1)]
        return e4m3_to_f32(T.cast(pool[place], "int32"), 1) if self.kernel.in_e4m3 else load(pool, *place)


def lower_paged_attention(
    call: relax.Call,
    builder: relax.BlockBuilder,
    kernel: Callable[[AttentionShape], tvm.tirx.PrimFunc | None] | None = None,
    workspace: Callable[[AttentionShape, Value, Value], Sequence[Value | int]] | None = None,
) -> relax.Expr | None:
    """`PagedAttention` over pools as `state_layout.py` has them, by this file's kernel or another one of the same arguments.

    Such a kernel may be None, meaning "not mine". It may have a `workspace` of float32 before the layer, whose shape depends on how many
    sequences there are, and how many blocks a sequence may have.
    """
    op = PagedAttention.match(call)
    if op is None:
        return None
    keys, *others = op.pools
    *_, block_size, groups, key_dim = (getattr(size, "value", 0) for size in keys.ty.shape)
    shape = attention_shape(op, call.ty, groups, key_dim, int(others[0].ty.shape[-1]) if op.v is not None else 0, block_size)
    function = (kernel or _attention)(shape)
    if function is None:
        return None
    scratch = None if workspace is None else list(workspace(shape, *op.block_tables.ty.shape))
    return call_attention(function, shape.label, op, call.ty, builder, scratch)


def attention_tensors(
    k: AttentionShape, workspace: Callable[[AttentionShape, Value, Value], Sequence[Value | int]] | None = None
) -> AttentionTensors:
    """Emits the arguments of a kernel, in the order of `call_attention`."""
    n, batch, max_blocks, layers, blocks = (T.int64() for _ in range(5))
    matrices = [argument(label, (n, columns), dtype) for label, columns, dtype in zip("qkv", k.columns, k.dtypes, strict=False)]
    cos, sin = (argument(label, (n, k.rotary_dim), k.angle_dtype) if k.rotary_dim else None for label in ("cos", "sin"))
    rows = (layers, blocks, k.block_size, k.num_kv_heads)
    dims = {"key": k.key_dim} if k.is_latent else {"key": k.key_dim, "value": k.value_dim}
    return AttentionTensors(
        kernel=k,
        n=n,
        batch=batch,
        matrices=matrices,
        angles=(cos, sin) if k.rotary_dim else None,
        pools=[argument(f"{label}s", (*rows, dim), k.pool_dtype) for label, dim in dims.items()],
        scales=[argument(f"{label}_scales", rows, "float32") for label in dims if k.kv_dtype == "int8"],
        slots=argument("slots", (n,), "int32"),
        query_starts=argument("query_starts", (T.int64(),), "int32"),
        context_lens=argument("context_lens", (batch,), "int32"),
        block_tables=argument("block_tables", (batch, max_blocks), "int32"),
        slopes=argument("slopes", (k.num_heads,), "float32") if k.has_slopes else None,
        sinks=argument("sinks", (k.num_heads,), "float32") if k.has_sinks else None,
        workspace=argument("workspace", workspace(k, batch, max_blocks), "float32") if workspace is not None else None,
        layer=T.arg("layer", T.int64()),
        out=argument("out", (n, k.num_heads * k.value_dim), k.out_dtype),
    )


@cache
def _attention(kernel: AttentionShape) -> tvm.tirx.PrimFunc:
    def body() -> None:
        tensors = attention_tensors(kernel)
        _append(tensors)
        _attend(tensors)

    return prim_func(body)


def _append(t: AttentionTensors) -> None:
    """Writes new keys, rotated, and values to their slots; a negative slot is skipped."""
    kernel = t.kernel
    with each(t.n, kernel.num_kv_heads) as (token, group):
        slot = name(T.cast(t.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then():
            place = (t.layer, slot // kernel.block_size, slot % kernel.block_size, group)
            for which, dim in enumerate((kernel.key_dim, kernel.value_dim)[: len(t.pools)]):
                row, first = local(dim), name(kernel.starts[1 + which] + group * dim)
                _read_head(t, 1 + which, token, first, row)
                _keep(t, which, place, row, dim)


def _read_head(t: AttentionTensors, matrix: int, token: Value, first: Value, row: Buffer) -> None:
    """A head of q, k or v in float32, q and k rotated."""
    kernel = t.kernel
    angles, rotated = (None, 0) if matrix == 2 else (t.angles, kernel.rotary_dim)
    dim = kernel.value_dim if matrix == 2 else kernel.key_dim

    def read(d: Value) -> Value:
        return load(t.matrices[matrix], token, first + d)

    rotate(read, lambda d, value: T.buffer_store(row, value, [d]), dim, rotated, kernel.interleaved, angles, token)


def _keep(t: AttentionTensors, which: int, place: tuple[Value, ...], row: Buffer, dim: int) -> None:
    """Writes a key or a value to its pool, rounded to its type."""
    pool, kernel = t.pools[which], t.kernel
    if not t.scales:
        with each(dim) as (d,):
            if kernel.in_e4m3:
                T.buffer_store(pool, T.cast(f32_to_e4m3(name(row[d]), 1), "uint8"), [*place, d])
            else:
                store(pool, (*place, d), row[d])
        return
    step, inverse = step_of(largest(dim, lambda d: row[d]))
    T.buffer_store(t.scales[which], step, list(place))
    with each(dim) as (d,):
        T.buffer_store(pool, code_of(row[d], inverse), [*place, d])


def _attend(t: AttentionTensors) -> None:
    kernel = t.kernel
    with each(t.batch) as (sequence,):
        first, end = (name(T.cast(t.query_starts[sequence + i], "int64")) for i in (0, 1))
        length = name(T.cast(t.context_lens[sequence], "int64"))
        with each(end - first, kernel.num_heads) as (i, head):
            query = local(kernel.key_dim)
            _read_head(t, 0, first + i, name(kernel.starts[0] + head * kernel.key_dim), query)
            position = name(length - (end - first) + i)
            begin = name(T.max(T.int64(0), position + 1 - kernel.window)) if kernel.window else T.int64(0)
            _Softmax.start(t, head).run(query, sequence, position, begin, first + i)


@dataclass(frozen=True)
class _Softmax:
    """A row of one head: the largest score so far, the sum of weights relative to it, and the weighted sum of values."""

    tensors: AttentionTensors
    head: Value
    highest: Buffer
    total: Buffer
    values: Buffer

    @staticmethod
    def start(t: AttentionTensors, head: Value) -> _Softmax:
        softmax = _Softmax(t, head, local(1), local(1), local(t.kernel.value_dim))
        T.buffer_store(softmax.highest, T.float32(_LOWEST), [0])
        T.buffer_store(softmax.total, T.float32(0), [0])
        with each(t.kernel.value_dim) as (e,):
            T.buffer_store(softmax.values, T.float32(0), [e])
        return softmax

    def run(self, query: Buffer, sequence: Value, position: Value, begin: Value, row: Value) -> None:
        """Takes the keys from `begin` to `position`, and writes the result."""
        t, kernel = self.tensors, self.tensors.kernel
        group = name(self.head // (kernel.num_heads // kernel.num_kv_heads))
        with each(position + 1 - begin) as (i,):
            key = name(begin + i)
            block = name(T.cast(t.block_tables[sequence, key // kernel.block_size], "int64"))
            place = (t.layer, block, key % kernel.block_size, group)
            score = total(kernel.key_dim, lambda d: query[d] * t.number(load, 0, *place, d))
            self.add(self.score(score, place, key - position), lambda e: self.value(place, e))
        if t.sinks is not None:
            self.add(t.sinks[self.head], lambda e: T.float32(0))
        with each(kernel.value_dim) as (e,):
            store(t.out, (row, self.head * kernel.value_dim + e), self.values[e] / self.total[0])

    def score(self, product: Value, place: tuple[Value, ...], distance: Value) -> Value:
        """Of a key, by its product with the query."""
        t, kernel = self.tensors, self.tensors.kernel
        score = product * T.float32(kernel.scale)
        scale = t.scale(0, place)
        score = score if scale is None else score * scale
        if kernel.softcap:
            score = T.float32(kernel.softcap) * T.tanh(score * T.float32(1 / kernel.softcap))
        return score + t.slopes[self.head] * T.cast(distance, "float32") if t.slopes is not None else score

    def value(self, place: tuple[Value, ...], e: Value) -> Value:
        """A dimension of a token's value."""
        t = self.tensors
        value, scale = t.number(load, 1, *place, e), t.scale(1, place)
        return value if scale is None else value * scale

    def add(self, score: Value, value: Callable[[Value], Value]) -> None:
        """Counts in a key, by its score and its value's dimensions."""
        score = name(score)
        highest = name(T.max(self.highest[0], score))
        kept, weight = name(T.exp(self.highest[0] - highest)), name(T.exp(score - highest))
        T.buffer_store(self.highest, highest, [0])
        T.buffer_store(self.total, self.total[0] * kept + weight, [0])
        with each(self.tensors.kernel.value_dim) as (e,):
            T.buffer_store(self.values, self.values[e] * kept + weight * value(e), [e])
