"""The argmax of each row of logits, and the inputs of the step that goes on with it."""

from __future__ import annotations

import math
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.targets.cpu.emit.loops import for_each
from cupola.targets.cpu.emit.simd import Buffer, Value, argument, local, name, prim_func
from cupola.targets.cpu.isa import ISA
from cupola.targets.next_step import INFINITY_BITS, ChosenTokens, NextStep, lower_chosen_tokens, magnitude


def lower_argmax(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Argmax`; the same code for every instruction set. Where tokens are `chosen` they are taken."""
    return lower_chosen_tokens(call, builder, _argmax, _take_chosen)


@cache
def _argmax(width: int, block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    num_blocks = -(-width // MAXIMA_BLOCK)

    def body() -> None:
        rows = T.int64()
        logits = argument("logits", (rows, width), "float32")
        maxima = argument("maxima", (rows, num_blocks), "float32")
        step = NextStep(rows, block_size, num_further, name)

        def choose(row: Value) -> None:
            start = name(find_largest(maxima, row, T.int64(0), T.int64(num_blocks)) * MAXIMA_BLOCK)
            token = name(start + find_largest(logits, row, start, name(T.min(T.int64(width) - start, T.int64(MAXIMA_BLOCK)))))
            step.add(row, T.Select(any_is_nan(maxima, row, num_blocks), T.int32(-1), T.cast(token, "int32")))

        for_each(rows, num_blocks, choose)
        with T.serial(rows) as row:
            step.go_on(row)

    return prim_func(body)


@cache
def _take_chosen(block_size: int, num_further: int) -> tvm.tirx.PrimFunc:
    def body() -> None:
        rows = T.int64()
        chosen, step = ChosenTokens(rows), NextStep(rows, block_size, num_further, name)
        with T.serial(rows) as row:
            step.add(row, chosen.take(row))
            step.go_on(row)

    return prim_func(body)


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
    """True if one of the first `count` numbers of a row is none."""
    highest = local(1, "int32")
    T.buffer_store(highest, T.int32(0), [0])
    with T.serial(count) as i:
        T.buffer_store(highest, T.max(highest[0], magnitude(x[row, i])), [0])
    return highest[0] > T.int32(INFINITY_BITS)
