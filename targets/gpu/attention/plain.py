"""Paged attention over the generic layout: one launch appends new keys and values, the next attends, a warp for each token and head.

A warp takes the keys of its row in order (online softmax, arXiv:1805.02867); its lanes share the dimensions of a head. Where every sequence
brings one token, the second launch does all: a warp takes its own key from where it comes, and the first of a group's warps writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.attention_shape import AttentionShape
from cupola.targets.emit import Buffer, Value, e4m3_to_f32, f32_to_e4m3, prim_func
from cupola.targets.generic import attention as generic
from cupola.targets.generic.attention import AttentionTensors, attention_tensors
from cupola.targets.gpu.emit import WARP, blocks, cached, keep, load, over_warp, registers, store, warp_sum

LOWEST = -3.0e38  # of a maximum before there is one
_ROUND = 1.5 * 2.0**23  # added to a number, it leaves the nearest integer in the low bits


def lower_paged_attention(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`PagedAttention` over pools as `targets/generic/state_layout.py` has them."""
    return generic.lower_paged_attention(call, builder, _attention)


@cached
def _attention(k: AttentionShape) -> tvm.tirx.PrimFunc:
    def body() -> None:
        tensors = attention_tensors(k)
        append(tensors)
        attend(tensors)

    return prim_func(body)


def some_bring_more(t: AttentionTensors) -> Value:
    """1 if some sequence brings more than one token, else 0."""
    return (t.n - t.batch + t.n - 1) // t.n


def append(t: AttentionTensors) -> None:
    """Writes new keys and values; no blocks are launched where every sequence brings one token, for whoever attends does it then."""
    kernel = t.kernel
    with blocks(t.n * some_bring_more(t), kernel.num_kv_heads, threads=WARP) as (token, group, lane):
        for which in (0, 1):
            Row.read(t, which, token, group, lane).write(token, group)


@dataclass(frozen=True)
class Row:
    """A new key (0) or value (1) of a head, rounded as its pool holds it; what is held is `numbers` times `scale`."""

    tensors: AttentionTensors
    which: int
    numbers: Head
    scale: Value | None

    @staticmethod
    def read(t: AttentionTensors, which: int, token: Value, group: Value, lane: Value) -> Row:
        """A token's, keys rotated."""
        kernel = t.kernel
        dim = (kernel.key_dim, kernel.value_dim)[which]
        row = Head.read(t, 1 + which, token, kernel.starts[1 + which] + group * dim, dim, lane)
        held = row.numbers
        if kernel.in_e4m3:
            row.each(lambda i, _: T.buffer_store(held, e4m3_to_f32(keep(f32_to_e4m3(held[i], 1)), 1), [i]))
            return Row(t, which, row, None)
        if not t.scales:
            row.each(lambda i, _: T.buffer_store(held, T.cast(T.cast(held[i], kernel.kv_dtype), "float32"), [i]))
            return Row(t, which, row, None)
        highest = registers()
        T.buffer_store(highest, T.float32(0), [0])
        row.each(lambda i, _: T.buffer_store(highest, T.max(highest[0], T.max(held[i], T.float32(0) - held[i])), [0]))
        largest = over_warp(highest[0], T.max)
        inverse = keep(T.if_then_else(largest > T.float32(0), T.float32(127) / largest, T.float32(0)))

        def code(i: int) -> Value:
            return T.cast(T.reinterpret("int32", keep(keep(held[i] * inverse) + T.float32(_ROUND))), "int8")

        row.each(lambda i, _: T.buffer_store(held, T.cast(code(i), "float32"), [i]))
        return Row(t, which, row, keep(largest * T.float32(1 / 127)))

    def write(self, token: Value, group: Value) -> None:
        """Writes it to the token's slot; a negative one is skipped."""
        t, kernel = self.tensors, self.tensors.kernel
        slot = keep(T.cast(t.slots[token], "int64"))
        with T.If(slot >= T.int64(0)), T.Then():
            place = (t.layer, slot // kernel.block_size, slot % kernel.block_size, group)
            self.numbers.each(lambda i, d: self._write(i, (*place, d)))
            if self.scale is not None:
                with T.If(self.numbers.lane == T.int64(0)), T.Then():
                    T.buffer_store(t.scales[self.which], self.scale, list(place))

    def _write(self, i: int, place: tuple[Value, ...]) -> None:
        pool, number = self.tensors.pools[self.which], self.numbers.numbers[i]
        if self.tensors.kernel.in_e4m3:
            T.buffer_store(pool, T.cast(f32_to_e4m3(number, 1), "uint8"), list(place))
        else:
            store(pool, place, number)


@dataclass(frozen=True)
class Head:
    """A row of `dim` numbers over the lanes of a warp: lane i has those at i, i + 32, …, as f32 in `numbers`."""

    numbers: Buffer
    dim: int
    lane: Value

    @staticmethod
    def empty(dim: int, lane: Value) -> Head:
        """Not yet set."""
        return Head(registers(-(-dim // WARP)), dim, lane)

    @staticmethod
    def read(t: AttentionTensors, matrix: int, token: Value, first: Value, dim: int, lane: Value) -> Head:
        """A head of q, k or v, q and k rotated (arXiv:2104.09864)."""
        kernel, head, rotated = t.kernel, Head.empty(dim, lane), 0 if matrix == 2 else t.kernel.rotary_dim

        def value(d: Value) -> Value:
            return load(t.matrices[matrix], token, first + d)

        def turned(d: Value) -> Value:
            assert t.angles is not None
            half = rotated // 2
            is_low = (d % 2 == T.int64(0)) if kernel.interleaved else (d < T.int64(half))
            away = T.int64(1 if kernel.interleaved else half)
            other = keep(value(keep(T.if_then_else(is_low, d + away, d - away))))
            cos, sin = (load(angle, token, d) for angle in t.angles)
            return value(d) * cos + T.if_then_else(is_low, T.float32(0) - other, other) * sin

        def put(i: int, d: Value) -> None:
            if not rotated:
                T.buffer_store(head.numbers, value(d), [i])
                return
            with T.If(d < T.int64(rotated)):
                with T.Then():
                    T.buffer_store(head.numbers, turned(d), [i])
                with T.Else():
                    T.buffer_store(head.numbers, value(d), [i])

        head.each(put)
        return head

    def each(self, do: Callable[[int, Value], None]) -> None:
        """Does something for each of a lane's numbers, by its index and its dimension."""
        for i in range(-(-self.dim // WARP)):
            d = self.lane + T.int64(i * WARP)
            if (i + 1) * WARP <= self.dim:
                do(i, d)
            else:
                with T.If(d < T.int64(self.dim)), T.Then():
                    do(i, d)


def attend(t: AttentionTensors, least: int = 1, most: int = 0) -> None:
    """Writes the results of sequences that bring at least so many tokens, 1 or 2, and at most `most` (0: any number)."""
    kernel = t.kernel
    with blocks(t.n if least == 1 else t.n * some_bring_more(t), kernel.num_heads, threads=WARP) as (token, head, lane):
        found = registers(1, "int64")
        T.buffer_store(found, T.int64(0), [0])
        with T.serial(t.batch) as i, T.If(T.cast(t.query_starts[i + 1], "int64") <= token), T.Then():
            T.buffer_store(found, T.cast(i, "int64") + 1, [0])
        with T.If(found[0] < t.batch), T.Then():  # a token behind the last sequence is nobody's
            sequence = found[0]
            end = keep(T.cast(t.query_starts[sequence + 1], "int64"))
            count = end - T.cast(t.query_starts[sequence], "int64")
            with T.If(count <= T.int64(most) if most else count >= T.int64(least)), T.Then():
                position = keep(T.cast(t.context_lens[sequence], "int64") - end + token)
                begin = keep(T.max(T.int64(0), position + 1 - kernel.window)) if kernel.window else T.int64(0)
                query = Head.read(t, 0, token, kernel.starts[0] + head * kernel.key_dim, kernel.key_dim, lane)
                _softmax(t, query, token, head, sequence, begin, position)


def _softmax(t: AttentionTensors, query: Head, token: Value, head: Value, sequence: Value, begin: Value, position: Value) -> None:
    """Takes the keys from `begin` to `position`, and writes the result."""
    kernel = t.kernel
    group = keep(head // (kernel.num_heads // kernel.num_kv_heads))
    highest, total, sums = registers(), registers(), Head.empty(kernel.value_dim, query.lane)
    T.buffer_store(highest, T.float32(LOWEST), [0])
    T.buffer_store(total, T.float32(0), [0])
    for i in range(-(-kernel.value_dim // WARP)):
        T.buffer_store(sums.numbers, T.float32(0), [i])

    def add(score: Value, value: Callable[[int, Value], Value]) -> None:
        new = keep(T.max(highest[0], score))
        kept, weight = keep(T.exp(highest[0] - new)), keep(T.exp(score - new))
        T.buffer_store(highest, new, [0])
        T.buffer_store(total, total[0] * kept + weight, [0])
        sums.each(lambda i, e: T.buffer_store(sums.numbers, sums.numbers[i] * kept + weight * value(i, e), [i]))

    def score(product: Value, scale: Value | None, distance: Value) -> Value:
        value = warp_sum(product) * T.float32(kernel.scale)
        value = value * scale if scale is not None else value
        if kernel.softcap:
            value = T.float32(kernel.softcap) * T.tanh(value * T.float32(1 / kernel.softcap))
        return keep(value + t.slopes[head] * T.cast(distance, "float32") if t.slopes is not None else value)

    def dot(number: Callable[[int, Value], Value]) -> Value:
        part = registers()
        T.buffer_store(part, T.float32(0), [0])
        query.each(lambda i, d: T.buffer_store(part, part[0] + query.numbers[i] * number(i, d), [0]))
        return part[0]

    each_brings_one = t.n == t.batch
    in_pages = keep(position + 1 - T.if_then_else(each_brings_one, T.int64(1), T.int64(0)))
    with T.serial(T.max(in_pages - begin, T.int64(0))) as step:
        key = keep(begin + T.cast(step, "int64"))
        block = keep(T.cast(t.block_tables[sequence, key // kernel.block_size], "int64"))
        place = (t.layer, block, key % kernel.block_size, group)
        product = dot(lambda _, d: t.number(load, 0, *place, d))
        found = score(product, t.scales[0][place] if t.scales else None, key - position)
        add(found, lambda _, e: t.number(load, 1, *place, e) * (t.scales[1][place] if t.scales else T.float32(1)))
    with T.If(each_brings_one), T.Then():
        own = [Row.read(t, which, token, group, query.lane) for which in (0, 1)]
        with T.If(head % (kernel.num_heads // kernel.num_kv_heads) == T.int64(0)), T.Then():
            for row in own:
                row.write(token, group)
        found = score(dot(lambda i, _: own[0].numbers.numbers[i]), own[0].scale, T.int64(0))
        add(found, lambda i, _: own[1].numbers.numbers[i] * (own[1].scale if own[1].scale is not None else T.float32(1)))
    if t.sinks is not None:
        add(keep(t.sinks[head]), lambda i, e: T.float32(0))
    sums.each(lambda i, e: store(t.out, (token, head * kernel.value_dim + e), sums.numbers[i] / total[0]))
