"""The largest number of each block of a row, for choosing tokens without reading all logits again.

Logits are shared out as the projection before them does it, by columns: a thread finds in its own cache what it wrote there.
"""

from __future__ import annotations

from functools import cache, reduce

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.targets.cpu.emit.loops import for_each
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, argument, pieces, prim_func, tree
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.ops import BlockMaxima

assert MAXIMA_BLOCK % PANEL == 0  # no block lies in two tasks of a projection


def lower_block_maxima(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`BlockMaxima` of rows of a known width."""
    op = BlockMaxima.match(call)
    if op is None:
        return None
    width = int(op.x.ty.shape[1])
    return relax.op.call_tir(builder.add_func(_build(isa, width), f"block_maxima_{width}"), relax.Tuple([op.x]), out_ty=call.ty)


@cache
def _build(isa: ISA, width: int) -> tvm.tirx.PrimFunc:
    simd, num_whole, rest = Simd(isa), width // MAXIMA_BLOCK, width % MAXIMA_BLOCK

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, width), "float32")
        out = argument("out", (n, num_whole + (rest > 0)), "float32")

        def block(index: Value | int, size: int) -> None:
            with T.serial(n) as row:
                T.buffer_store(out, _largest(simd, x, row, index * MAXIMA_BLOCK, size), [row, index])

        if num_whole:
            for_each(T.int64(num_whole), n * MAXIMA_BLOCK, lambda index: block(index, MAXIMA_BLOCK))
        if rest:
            block(num_whole, rest)

    return prim_func(body)


def _largest(simd: Simd, x: Buffer, row: Value, start: Value | int, size: int) -> Value:
    by_lanes: dict[int, Value] = {}
    for at, lanes in pieces(size, simd.lanes):
        vector = simd.load(x, (row, start + at), lanes)
        by_lanes[lanes] = simd.maximum(by_lanes[lanes], vector) if lanes in by_lanes else vector
    return reduce(simd.maximum, [tree(vector, simd.maximum) for vector in by_lanes.values()])
