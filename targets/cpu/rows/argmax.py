"""The argmax of each row of logits, and the inputs of the step that goes on with it."""

from __future__ import annotations

import math
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import DRAW_COLUMNS, MAX_STEPS, MAXIMA_BLOCK, UNIFORMS
from cupola.targets.cpu.emit.loops import for_each
from cupola.targets.cpu.emit.simd import Buffer, Value, argument, local, name, prim_func
from cupola.targets.cpu.isa import ISA
from cupola.targets.ops import Argmax

INFINITY_BITS, MAGNITUDE_BITS = 0x7F800000, 0x7FFFFFFF  # of float32; a magnitude of more than infinity's is NaN


def lower_argmax(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Argmax`; the same code for every instruction set. Where tokens are `chosen` they are taken."""
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


@cache
def _argmax(width: int, block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    num_blocks = -(-width // MAXIMA_BLOCK)

    def body() -> None:
        rows = T.int64()
        logits = argument("logits", (rows, width), "float32")
        maxima = argument("maxima", (rows, num_blocks), "float32")
        inputs = _Inputs(num_further)
        out = argument("out", (MAX_STEPS, rows), "int32")

        def choose(row: Value) -> None:
            start = name(find_largest(maxima, row, T.int64(0), T.int64(num_blocks)) * MAXIMA_BLOCK)
            token = name(start + find_largest(logits, row, start, name(T.min(T.int64(width) - start, T.int64(MAXIMA_BLOCK)))))
            _add(out, row, T.Select(any_is_nan(maxima, row, num_blocks), T.int32(-1), T.cast(token, "int32")))

        for_each(rows, num_blocks, choose)
        inputs.go_on(rows, out, block_size)

    return prim_func(body)


@cache
def _take_chosen(block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    def body() -> None:
        rows = T.int64()
        chosen = argument("chosen", (rows,), "int32")
        draws = argument("draws", (rows, DRAW_COLUMNS), "int32")
        inputs = _Inputs(num_further)
        out = argument("out", (MAX_STEPS, rows), "int32")
        with T.serial(rows) as row:
            _add(out, row, chosen[row])
            with T.serial(2 * (MAX_STEPS - 1)) as half:
                T.buffer_store(draws, draws[row, UNIFORMS + 2 + half], [row, UNIFORMS + half])
        inputs.go_on(rows, out, block_size)

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

    def go_on(self, rows: Value, out: Buffer, block_size: int) -> None:
        """Each sequence, if all bring one token and want its logits."""
        with T.If(T.And(self.n == self.batch, self.n == rows)), T.Then(), T.serial(self.n) as i:
            index = name(self.context_lens[i])  # of the next token, among those that the tables show
            T.buffer_store(self.tokens, T.max(out[MAX_STEPS - 1, i], 0), [i])  # a token for the embedding, whatever comes of it
            T.buffer_store(self.positions, self.positions[i] + 1, [i])
            for slots, tables, columns in self.groups:
                column = T.min(T.cast(index // block_size, "int64"), columns - 1)  # past the end, nobody goes on
                T.buffer_store(slots, tables[i, column] * block_size + index % block_size, [i])
            T.buffer_store(self.context_lens, index + 1, [i])


def find_largest(x: Buffer, row: Value, start: Value, count: Value) -> Value:
    """Where, from `start` on, the first of the largest of a row's numbers is."""
    found, largest = local(1, "int64"), local(1)
    T.buffer_store(found, T.int64(0), [0])
    T.buffer_store(largest, T.float32(-math.inf), [0])
    with T.serial(count) as i:
        value = name(x[row, start + i])
        with T.If(value > largest[0]), T.Then():
            T.buffer_store(found, i, [0])
            T.buffer_store(largest, value, [0])
    return found[0]


def any_is_nan(x: Buffer, row: Value, count: int) -> Value:
    """By their bits: TVM's simplifier takes for granted that a number equals itself."""
    highest = local(1, "int32")
    T.buffer_store(highest, T.int32(0), [0])
    with T.serial(count) as i:
        T.buffer_store(highest, T.max(highest[0], T.reinterpret("int32", x[row, i]) & T.int32(MAGNITUDE_BITS)), [0])
    return highest[0] > T.int32(INFINITY_BITS)
