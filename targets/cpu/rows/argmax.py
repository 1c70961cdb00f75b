"""The argmax of each row of logits, and the inputs of the step that goes on with it."""

from __future__ import annotations

import math
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import MAX_STEPS, MAXIMA_BLOCK
from cupola.targets.cpu.emit.loops import for_each
from cupola.targets.cpu.emit.simd import Buffer, Value, argument, local, name, prim_func
from cupola.targets.cpu.isa import ISA
from cupola.targets.ops import Argmax

INFINITY_BITS, MAGNITUDE_BITS = 0x7F800000, 0x7FFFFFFF  # of float32; a magnitude of more than infinity's is NaN


def lower_argmax(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Argmax`; the same code for every instruction set."""
    op = Argmax.match(call)
    if op is None or op.chosen is not None:
        return None
    width = int(op.logits.ty.shape[1])
    function = builder.add_func(_build(width, op.block_size, len(op.further) // 2), f"argmax_{width}")
    arguments = [op.logits, op.maxima, op.tokens, op.positions, op.slots, op.context_lens, op.block_tables, *op.further]
    return relax.op.call_tir(function, relax.Tuple(arguments), out_ty=call.ty)


@cache
def _build(width: int, block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    num_blocks = -(-width // MAXIMA_BLOCK)

    def body() -> None:
        n, batch, rows, max_blocks = (T.int64() for _ in range(4))
        logits = argument("logits", (rows, width), "float32")
        maxima = argument("maxima", (rows, num_blocks), "float32")
        tokens, positions, slots = (argument(label, (n,), "int32") for label in ("tokens", "positions", "slots"))
        context_lens = argument("context_lens", (batch,), "int32")
        groups = [(slots, argument("block_tables", (batch, max_blocks), "int32"), max_blocks)]
        for group in range(1, num_further + 1):
            more_slots, width_of_table = argument(f"slots_{group}", (n,), "int32"), T.int64()
            groups.append((more_slots, argument(f"block_tables_{group}", (batch, width_of_table), "int32"), width_of_table))
        out = argument("out", (MAX_STEPS, rows), "int32")

        def choose(row: Value) -> None:
            with T.serial(MAX_STEPS - 1) as step:
                T.buffer_store(out, out[step + 1, row], [step, row])
            start = name(_find_largest(maxima, row, T.int64(0), T.int64(num_blocks)) * MAXIMA_BLOCK)
            token = name(start + _find_largest(logits, row, start, name(T.min(T.int64(width) - start, T.int64(MAXIMA_BLOCK)))))
            chosen = T.Select(_any_is_nan(maxima, row, num_blocks), T.int32(-1), T.cast(token, "int32"))
            T.buffer_store(out, chosen, [MAX_STEPS - 1, row])

        for_each(rows, num_blocks, choose)
        with T.If(T.And(n == batch, n == rows)), T.Then(), T.serial(n) as i:
            index = name(context_lens[i])  # of the next token, among those that the tables show
            T.buffer_store(tokens, T.max(out[MAX_STEPS - 1, i], 0), [i])  # a token for the embedding, whatever comes of it
            T.buffer_store(positions, positions[i] + 1, [i])
            for its_slots, tables, num_columns in groups:
                column = T.min(T.cast(index // block_size, "int64"), num_columns - 1)  # past the end, nobody goes on
                T.buffer_store(its_slots, tables[i, column] * block_size + index % block_size, [i])
            T.buffer_store(context_lens, index + 1, [i])

    return prim_func(body)


def _find_largest(x: Buffer, row: Value, start: Value, count: Value) -> Value:
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


def _any_is_nan(x: Buffer, row: Value, count: int) -> Value:
    """By their bits: TVM's simplifier takes for granted that a number equals itself."""
    highest = local(1, "int32")
    T.buffer_store(highest, T.int32(0), [0])
    with T.serial(count) as i:
        T.buffer_store(highest, T.max(highest[0], T.reinterpret("int32", x[row, i]) & T.int32(MAGNITUDE_BITS)), [0])
    return highest[0] > T.int32(INFINITY_BITS)
