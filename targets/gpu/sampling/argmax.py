"""Maxima and argmax of logits, and the inputs of the step that goes on with it, so that only token ids need come to the host."""

from __future__ import annotations

import math

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import DRAW_COLUMNS, MAX_STEPS, MAXIMA_BLOCK, UNIFORMS
from cupola.targets.emit import Buffer, Value, argument, prim_func
from cupola.targets.gpu.emit import WARP, blocks, cached, from_first, from_lane, keep, over_warp, registers, strided
from cupola.targets.ops import Argmax, BlockMaxima

INFINITY, MAGNITUDE = 0x7F800000, 0x7FFFFFFF  # bits of float32; a magnitude of more than infinity's is NaN


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
            largest, magnitude = registers(), registers(1, "int32")
            T.buffer_store(largest, T.float32(-math.inf), [0])
            T.buffer_store(magnitude, T.int32(0), [0])
            for i in range(MAXIMA_BLOCK // WARP):
                column = keep(block * MAXIMA_BLOCK + i * WARP + lane)
                with T.If(column < T.int64(width)), T.Then():
                    T.buffer_store(largest, T.max(largest[0], x[row, column]), [0])
                    T.buffer_store(magnitude, T.max(magnitude[0], _magnitude(x[row, column])), [0])
            highest, found = over_warp(largest[0], T.max), over_warp(magnitude[0], T.max)
            with T.If(lane == T.int64(0)), T.Then():
                nan = T.reinterpret("float32", keep(T.int32(INFINITY | 1)))
                T.buffer_store(out, T.if_then_else(found > T.int32(INFINITY), nan, highest), [row, block])

    return prim_func(body)


def lower_argmax(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Argmax`: a warp for each row, unless tokens are `chosen`, then a thread for each."""
    op = Argmax.match(call)
    if op is None:
        return None
    width, num_further = int(op.logits.ty.shape[1]), len(op.further) // 2
    inputs = [op.tokens, op.positions, op.slots, op.context_lens, op.block_tables, *op.further]
    if op.chosen is None:
        function = builder.add_func(_argmax(width, op.block_size, num_further), f"argmax_{width}")
        return relax.op.call_tir(function, relax.Tuple([op.logits, op.maxima, *inputs]), out_ty=call.ty)
    function = builder.add_func(_take_chosen(op.block_size, num_further), "take_chosen")
    return relax.op.call_tir(function, relax.Tuple([op.chosen, op.draws, *inputs]), out_ty=call.ty)


@cached
def _argmax(width: int, block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    num_blocks = -(-width // MAXIMA_BLOCK)

    def body() -> None:
        rows = T.int64()
        logits = argument("logits", (rows, width), "float32")
        maxima = argument("maxima", (rows, num_blocks), "float32")
        inputs = _Inputs(num_further)
        out = argument("out", (MAX_STEPS, rows), "int32")
        with blocks(rows, threads=WARP) as (row, lane):
            start = keep(_first_largest(maxima, row, lane, T.int64(0), T.int64(num_blocks)) * MAXIMA_BLOCK)
            end = keep(T.min(start + MAXIMA_BLOCK, T.int64(width)))
            token = keep(_first_largest(logits, row, lane, start, end))
            magnitude = registers(1, "int32")
            T.buffer_store(magnitude, T.int32(0), [0])
            with strided(num_blocks, lane, WARP) as i:
                T.buffer_store(magnitude, T.max(magnitude[0], _magnitude(maxima[row, i])), [0])
            is_nan = over_warp(magnitude[0], T.max) > T.int32(INFINITY)
            with T.If(lane == T.int64(0)), T.Then():
                _add(out, row, T.if_then_else(is_nan, T.int32(-1), T.cast(token, "int32")))
        with blocks((rows + T.int64(WARP - 1)) // T.int64(WARP), threads=WARP) as (block, lane):
            i = keep(block * WARP + lane)
            with T.If(i < rows), T.Then():
                inputs.go_on(i, rows, out[MAX_STEPS - 1, i], block_size)

    return prim_func(body)


@cached
def _take_chosen(block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    def body() -> None:
        rows = T.int64()
        chosen = argument("chosen", (rows,), "int32")
        draws = argument("draws", (rows, DRAW_COLUMNS), "int32")
        inputs = _Inputs(num_further)
        out = argument("out", (MAX_STEPS, rows), "int32")
        with blocks((rows + T.int64(WARP - 1)) // T.int64(WARP), threads=WARP) as (block, lane):
            i = keep(block * WARP + lane)
            with T.If(i < rows), T.Then():
                _add(out, i, chosen[i])
                with T.serial(2 * (MAX_STEPS - 1)) as half:
                    T.buffer_store(draws, draws[i, UNIFORMS + 2 + half], [i, UNIFORMS + half])
                inputs.go_on(i, rows, chosen[i], block_size)

    return prim_func(body)


def _add(out: Buffer, row: Value, token: Value) -> None:
    """Moves the tokens of steps before up by one, and writes the last."""
    with T.serial(MAX_STEPS - 1) as step:
        T.buffer_store(out, out[step + 1, row], [step, row])
    T.buffer_store(out, token, [MAX_STEPS - 1, row])


class _Inputs:
    """The arguments that the next step takes, which are changed where every sequence goes on."""

    def __init__(self, num_further: int) -> None:
        self.n, self.batch, max_blocks = (T.int64() for _ in range(3))
        self.tokens, self.positions, slots = (argument(label, (self.n,), "int32") for label in ("tokens", "positions", "slots"))
        self.context_lens = argument("context_lens", (self.batch,), "int32")
        self.groups = [(slots, argument("block_tables", (self.batch, max_blocks), "int32"), max_blocks)]
        for group in range(1, num_further + 1):
            more_slots, columns = argument(f"slots_{group}", (self.n,), "int32"), T.int64()
            self.groups.append((more_slots, argument(f"block_tables_{group}", (self.batch, columns), "int32"), columns))

    def go_on(self, i: Value, rows: Value, token: Value, block_size: int) -> None:
        """Sequence i, whose row that is if all bring one token and want its logits."""
        with T.If(T.And(self.n == self.batch, self.n == rows)), T.Then():
            index = keep(self.context_lens[i])  # of the next token, among those that the tables show
            T.buffer_store(self.tokens, T.max(token, 0), [i])  # a token for the embedding, whatever comes of it
            T.buffer_store(self.positions, self.positions[i] + 1, [i])
            for slots, tables, columns in self.groups:
                column = T.min(T.cast(T.truncdiv(index, block_size), "int64"), columns - 1)  # past the end, nobody goes on
                T.buffer_store(slots, tables[i, column] * block_size + T.truncmod(index, block_size), [i])
            T.buffer_store(self.context_lens, index + 1, [i])


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


def _magnitude(value: Value) -> Value:
    """By its bits: TVM's simplifier takes for granted that a number equals itself."""
    return T.reinterpret("int32", value) & T.int32(MAGNITUDE)
