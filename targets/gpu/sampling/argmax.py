"""Maxima and argmax of logits, and the inputs of the step that goes on with it, so that only token ids need come to the host."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.targets.emit import Buffer, Value, argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks, cached, from_first, from_lane, keep, over_warp, registers, strided
from cupola.targets.next_step import INFINITY_BITS, ChosenTokens, NextStep, lower_chosen_tokens, magnitude
from cupola.targets.ops import BlockMaxima


def lower_block_maxima(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`BlockMaxima`: a warp for each block."""
    op = BlockMaxima.match(call)
    if op is None:
        return None
    width = int(op.x.ty.shape[1])
    return relax.op.call_tir(builder.add_func(_block_maxima(width), f"block_maxima_{width}"), relax.Tuple([op.x]), out_ty=call.ty)


@cached
def _block_maxima(width: int) -> tvm.tirx.PrimFunc:
    num_blocks = -(-width // MAXIMA_BLOCK)

    def body() -> None:
        rows = T.int64()
        x, out = argument("x", (rows, width), "float32"), argument("out", (rows, num_blocks), "float32")
        with blocks(num_blocks, rows, threads=WARP) as (block, row, lane):
            largest, most = registers(), registers(1, "int32")
            T.buffer_store(largest, T.float32(-math.inf), [0])
            T.buffer_store(most, T.int32(0), [0])
            for i in range(MAXIMA_BLOCK // WARP):
                column = keep(block * MAXIMA_BLOCK + i * WARP + lane)
                with T.If(column < T.int64(width)), T.Then():
                    T.buffer_store(largest, T.max(largest[0], x[row, column]), [0])
                    T.buffer_store(most, T.max(most[0], magnitude(x[row, column])), [0])
            highest, found = over_warp(largest[0], T.max), over_warp(most[0], T.max)
            with T.If(lane == T.int64(0)), T.Then():
                nan = T.reinterpret("float32", keep(T.int32(INFINITY_BITS | 1)))
                T.buffer_store(out, T.if_then_else(found > T.int32(INFINITY_BITS), nan, highest), [row, block])

    return prim_func(body)


def lower_argmax(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Argmax`: a warp for each row, unless tokens are `chosen`, then a thread for each."""
    return lower_chosen_tokens(call, builder, _argmax, _take_chosen)


@cached
def _argmax(width: int, block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    num_blocks = -(-width // MAXIMA_BLOCK)

    def body() -> None:
        rows = T.int64()
        logits = argument("logits", (rows, width), "float32")
        maxima = argument("maxima", (rows, num_blocks), "float32")
        step = NextStep(rows, block_size, num_further, keep)
        with blocks(rows, threads=WARP) as (row, lane):
            start = keep(_first_largest(maxima, row, lane, T.int64(0), T.int64(num_blocks)) * MAXIMA_BLOCK)
            end = keep(T.min(start + MAXIMA_BLOCK, T.int64(width)))
            token = keep(_first_largest(logits, row, lane, start, end))
            highest = registers(1, "int32")
            T.buffer_store(highest, T.int32(0), [0])
            with strided(num_blocks, lane, WARP) as i:
                T.buffer_store(highest, T.max(highest[0], magnitude(maxima[row, i])), [0])
            is_nan = over_warp(highest[0], T.max) > T.int32(INFINITY_BITS)
            with T.If(lane == T.int64(0)), T.Then():
                step.add(row, T.if_then_else(is_nan, T.int32(-1), T.cast(token, "int32")))
        with _each(rows) as row:
            step.go_on(row)

    return prim_func(body)


@cached
def _take_chosen(block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    def body() -> None:
        rows = T.int64()
        chosen, step = ChosenTokens(rows), NextStep(rows, block_size, num_further, keep)
        with _each(rows) as row:
            step.add(row, chosen.take(row))
            step.go_on(row)

    return prim_func(body)


@contextmanager
def _each(rows: Value) -> Iterator[Value]:
    """A thread for each row."""
    with blocks((rows + T.int64(WARP - 1)) // T.int64(WARP), threads=WARP) as (block, lane):
        row = keep(block * WARP + lane)
        with T.If(row < rows), T.Then():
            yield row


def _first_largest(x: Buffer, row: Value, lane: Value, start: Value, end: Value) -> Value:
    """The first place of the largest number of a row from `start` to `end`; any for numbers that are not."""
    largest, found = registers(), registers(1, "int64")
    T.buffer_store(largest, T.float32(-math.inf), [0])
    T.buffer_store(found, end, [0])
    with strided(end, start + lane, WARP) as i:
        value = keep(x[row, i])
        with T.If(T.Or(value > largest[0], T.And(value == largest[0], i < found[0]))), T.Then():
            T.buffer_store(largest, value, [0])
            T.buffer_store(found, i, [0])
    for distance in (16, 8, 4, 2, 1):
        value, place = keep(from_lane(largest[0], distance)), keep(from_lane(found[0], distance))
        with T.If(T.Or(value > largest[0], T.And(value == largest[0], place < found[0]))), T.Then():
            T.buffer_store(largest, value, [0])
            T.buffer_store(found, place, [0])
    return from_first(found[0])
