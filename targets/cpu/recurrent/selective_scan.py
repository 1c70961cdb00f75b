"""Mamba's scan: a task keeps the state of some channels in the nearest cache, N vectors for each vector of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Register, Simd, Value, name, prim_func, splat
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.recurrent.blocks import AHEAD, Blocks, for_each_block, prefetch_part
from cupola.targets.generic.recurrent import RecurrentShape, RecurrentTensors, Span, lower_recurrence, recurrent_tensors
from cupola.targets.ops import SelectiveScan


def lower_selective_scan(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`SelectiveScan` in float32; a is turned, so that neighbouring channels lie side by side."""
    op = SelectiveScan.match(call)
    if op is None or any(str(x.ty.dtype) != "float32" for x in (op.x, op.delta, op.a, op.b, op.c)):
        return None
    turned = replace(op, a=builder.emit(relax.op.permute_dims(op.a)))
    return lower_recurrence(turned, lambda shape: _build(isa, shape), call.ty, builder, op.state_shape)


@cache
def _build(isa: ISA, shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    num_states, channels = shape.state
    blocks = Blocks.of(isa, channels, 2)

    def body() -> None:
        t = recurrent_tensors(shape)
        work = 8 * num_states * channels  # exponentials
        for_each_block(t, channels // blocks.size, work, lambda span, block: _scan(Simd(isa), blocks, t, num_states, span, block))

    return prim_func(body)


def _scan(simd: Simd, blocks: Blocks, t: RecurrentTensors, num_states: int, span: Span, block: Value) -> None:
    lanes, places = blocks.lanes, blocks.places(name(block * blocks.size))
    x, delta, a, b, c = (t.given[label] for label in ("x", "delta", "a", "b", "c"))
    with T.If(span.goes_on == T.int32(0)), T.Then(), T.serial(num_states) as s:
        for place in places:
            simd.store(t.pool, splat(0.0, lanes), (t.layer, span.slot, s, place))
    with T.If(T.And(span.goes_on != T.int32(0), span.source != span.slot)), T.Then(), T.serial(num_states) as s:
        for place in places:
            simd.store(t.pool, simd.load(t.pool, (t.layer, span.source, s, place), lanes), (t.layer, span.slot, s, place))
    with T.serial(span.count) as i:
        token = name(span.first + i)
        with T.If(i + AHEAD < span.count), T.Then():
            for tensor, write in ((x, False), (delta, False), (t.out, True)):
                prefetch_part(simd, tensor, (token + AHEAD,), places[0], blocks.size, write=write)
        steps = [simd.load(delta, (token, place), lanes) for place in places]
        inputs = [name(step * simd.load(x, (token, place), lanes)) for step, place in zip(steps, places, strict=True)]
        sums = [Register(lanes) for _ in places]
        with T.serial(num_states) as s:
            in_, out = splat(b[token, s], lanes), splat(c[token, s], lanes)
            for v, place in enumerate(places):
                kept = simd.exp(name(steps[v] * simd.load(a, (s, place), lanes)), nonpositive=True)
                old = simd.load(t.pool, (t.layer, span.slot, s, place), lanes)
                new = name(simd.fma(kept, old, name(inputs[v] * in_)))
                simd.store(t.pool, new, (t.layer, span.slot, s, place))
                sums[v].set(simd.fma(out, new, sums[v].get()))
        for total, place in zip(sums, places, strict=True):
            simd.store(t.out, total.get(), (token, place))
