"""Linear attention, with the delta rule or without: a task takes a sequence's tokens in some columns of a head's state.

Tokens follow one another, and sums go over keys' dimensions in order: a token has the same bits however a prompt was cut into calls. Chunks
of matrix products (arXiv:2405.21060) would need as many multiplications in float32, and give that up.
"""

from __future__ import annotations

from functools import cache

import tvm
from tvm import relax

from cupola.targets.cpu.emit.simd import Simd, Value, prim_func
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.recurrent.blocks import Blocks, for_each_block
from cupola.targets.cpu.recurrent.columns import Columns
from cupola.targets.cpu.recurrent.decayed_sum import add_up
from cupola.targets.cpu.recurrent.delta_rule import correct
from cupola.targets.generic.recurrent import RecurrentShape, Span, lower_recurrence, recurrent_tensors
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
    blocks = Blocks.of(isa, value_dim, isa.num_registers // 8)

    def body() -> None:
        t = recurrent_tensors(shape)
        run = correct if "beta" in t.given else add_up

        def task(span: Span, block: Value) -> None:
            run(Columns.of_task(Simd(isa), blocks, t, shape, span, block))

        for_each_block(t, heads * value_dim // blocks.size, heads * key_dim * value_dim, task)

    return prim_func(body)
