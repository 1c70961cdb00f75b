"""Linear attention, gated and with the delta rule: a task keeps the columns of a head's state that belong to its dimensions of values.

A token reads those columns twice and writes them once; they stay in the nearest cache. Sums go over keys' dimensions in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Register, Simd, Value, local, name, pieces, prim_func, splat
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.recurrent.blocks import Blocks, for_each_block
from cupola.targets.generic.recurrent import RecurrentShape, RecurrentTensors, Span, lower_recurrence, recurrent_tensors
from cupola.targets.ops import LinearAttention


def lower_linear_attention(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`LinearAttention` in float32."""
    op = LinearAttention.match(call)
    if op is None or any(str(x.ty.dtype) != "float32" for x in (op.q, op.k, op.v, op.decay)):
        return None
    return lower_recurrence(op, lambda shape: _build(isa, shape), call.ty, builder)


@cache
def _build(isa: ISA, shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    heads, key_dim, value_dim = shape.state
    blocks = Blocks.of(isa, value_dim)
    of_head = value_dim // blocks.size

    def body() -> None:
        t = recurrent_tensors(shape)
        work = heads * key_dim * value_dim

        def task(span: Span, block: Value) -> None:
            _Task(Simd(isa), blocks, t, shape, span, name(block // of_head), blocks.places(name(block % of_head * blocks.size))).run()

        for_each_block(t, heads * of_head, work, task)

    return prim_func(body)


@dataclass(frozen=True)
class _Task:
    """A sequence's tokens in some columns of a head's state."""

    simd: Simd
    blocks: Blocks
    t: RecurrentTensors
    shape: RecurrentShape
    span: Span
    head: Value
    places: list[Value]

    def run(self) -> None:
        heads, key_dim, _ = self.shape.state
        k, lanes = self.t.given["k"], self.blocks.lanes
        with T.If(self.span.goes_on == T.int32(0)), T.Then(), T.serial(key_dim) as a:
            for place in self.places:
                self.simd.store(self.t.pool, splat(0.0, lanes), self._state(a, place))
        group = name(self.head // (heads // int(k.shape[1])))
        with T.serial(self.span.count) as i:
            self._token(name(self.span.first + i), group)

    def _state(self, a: Value, place: Value) -> tuple[Value, ...]:
        return (self.t.layer, self.span.slot, self.head, a, place)

    def _token(self, token: Value, group: Value) -> None:
        simd, lanes, given, key_dim = self.simd, self.blocks.lanes, self.t.given, self.shape.state[1]
        q, k, v, decay, beta = (*(given[label] for label in ("q", "k", "v", "decay")), given.get("beta"))
        kept = self._decay(decay, token)
        updates = [simd.load(v, (token, self.head, place), lanes) for place in self.places]
        if isinstance(beta, Buffer):
            known = [Register(lanes) for _ in self.places]
            with T.serial(key_dim) as a:
                factor = splat(name(k[token, group, a] * kept[a % kept.shape[0]]), lanes)
                for total, place in zip(known, self.places, strict=True):
                    total.set(simd.fma(factor, simd.load(self.t.pool, self._state(a, place), lanes), total.get()))
            rate = splat(beta[token, self.head], lanes)
            updates = [name((value - total.get()) * rate) for value, total in zip(updates, known, strict=True)]
        sums = [Register(lanes) for _ in self.places]
        with T.serial(key_dim) as a:
            held, key, query = (splat(x, lanes) for x in (kept[a % kept.shape[0]], k[token, group, a], q[token, group, a]))
            for update, total, place in zip(updates, sums, self.places, strict=True):
                old = simd.load(self.t.pool, self._state(a, place), lanes)
                new = name(simd.fma(key, update, name(old * held)))
                simd.store(self.t.pool, new, self._state(a, place))
                total.set(simd.fma(query, new, total.get()))
        for total, place in zip(sums, self.places, strict=True):
            simd.store(self.t.out, total.get(), (token, self.head, place))

    def _decay(self, decay: Buffer, token: Value) -> Buffer:
        """The share of the state that is kept: one number, or one for each of keys' dimensions."""
        each = len(decay.shape) == 3
        size = self.shape.state[1] if each else 1
        kept = local(size)
        for start, lanes in pieces(size, self.simd.lanes):
            index = (token, self.head, start) if each else (token, self.head)
            value = self.simd.load(decay, index, lanes)
            self.simd.store(kept, self.simd.exp(value, nonpositive=True), (start,))
        return kept
