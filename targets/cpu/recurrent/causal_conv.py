"""Convolutions over tokens, channel by channel: the rows before a token stay in registers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Register, Simd, Value, name, prim_func
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.recurrent.blocks import AHEAD, Blocks, for_each_block, prefetch_part
from cupola.targets.generic.recurrent import RecurrentShape, RecurrentTensors, Span, lower_recurrence, recurrent_tensors
from cupola.targets.ops import CausalConv

MAX_WIDTH = 8  # of rows that stay in registers


def lower_causal_conv(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`CausalConv` in float32 of a few tokens; the weight is turned, so that neighbouring channels lie side by side."""
    op = CausalConv.match(call)
    if op is None or op.pool is None or op.state_shape[0] >= MAX_WIDTH:
        return None
    if any(str(x.ty.dtype) != "float32" for x in (op.x, op.weight)):
        return None
    turned = replace(op, weight=builder.emit(relax.op.permute_dims(op.weight)))
    return lower_recurrence(turned, lambda shape: _build(isa, shape), call.ty, builder, op.state_shape)


@cache
def _build(isa: ISA, shape: RecurrentShape) -> tvm.tirx.PrimFunc:
    before, channels = shape.state
    blocks = Blocks.of(isa, channels, max(1, (isa.num_registers - 4) // (2 * before + 2)))

    def body() -> None:
        t = recurrent_tensors(shape)
        for_each_block(t, channels // blocks.size, channels, lambda span, block: _convolve(Simd(isa), blocks, t, before, span, block))

    return prim_func(body)


def _convolve(simd: Simd, blocks: Blocks, t: RecurrentTensors, before: int, span: Span, block: Value) -> None:
    lanes, places = blocks.lanes, blocks.places(name(block * blocks.size))
    x, weight, bias = t.given["x"], t.given["weight"], t.given.get("bias")
    rows = [[Register(lanes) for _ in places] for _ in range(before)]
    with T.If(span.goes_on != T.int32(0)), T.Then():
        for j in range(before):
            for row, place in zip(rows[j], places, strict=True):
                row.set(simd.load(t.pool, (t.layer, span.source, j, place), lanes))
    weights = [[simd.load(weight, (j, place), lanes) for place in places] for j in range(before + 1)]
    biases = [simd.load(bias, (place,), lanes) if isinstance(bias, Buffer) else None for place in places]
    with T.serial(span.count) as i:
        token = name(span.first + i)
        with T.If(i + AHEAD < span.count), T.Then():
            for tensor, write in ((x, False), (t.out, True)):
                prefetch_part(simd, tensor, (token + AHEAD,), places[0], blocks.size, write=write)
        for v, place in enumerate(places):
            new = simd.load(x, (token, place), lanes)
            sums = [row[v].get() for row in rows] + [new]
            value = biases[v]
            for j, term in enumerate(sums):
                value = name(term * weights[j][v] if value is None else simd.fma(term, weights[j][v], value))
            simd.store(t.out, value, (token, place))
            for j in range(before):
                rows[j][v].set(rows[j + 1][v].get() if j + 1 < before else new)
    for j in range(before):
        for row, place in zip(rows[j], places, strict=True):
            simd.store(t.pool, row.get(), (t.layer, span.slot, j, place))
