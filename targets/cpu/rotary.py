"""Rotary position embedding (arXiv:2104.09864), halves rotated, applied in one pass over the heads of a token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.loops import for_each
from cupola.targets.cpu.simd import Buffer, Simd, Value, argument, pieces, prim_func, splat
from cupola.targets.ops import Rotary


@dataclass(frozen=True)
class _Kernel:
    isa: ISA
    num_heads: int
    head_dim: int
    angle_dtype: str


def lower_rotary(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Rotary` of float32 heads of a known, even size."""
    op = Rotary.match(call)
    if op is None or op.x.ty.dtype != "float32":
        return None
    heads, dim = (getattr(size, "value", 1) for size in list(op.x.ty.shape)[1:])
    if dim % 2 != 0:
        return None
    kernel = _Kernel(isa, heads, dim, str(op.cos.ty.dtype))
    gv = builder.add_func(_build(kernel), f"rotary_{heads}x{dim}")
    return relax.op.call_tir(gv, relax.Tuple([op.x, op.cos, op.sin]), out_ty=call.ty)


@cache
def _build(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    simd = Simd(kernel.isa)

    def body() -> None:
        n, heads, dim = T.int64(), kernel.num_heads, kernel.head_dim
        x = argument("x", (n, heads, dim), "float32")
        cos, sin = (argument(name, (n, dim), kernel.angle_dtype) for name in ("cos", "sin"))
        out = argument("out", (n, heads, dim), "float32")

        def token(i: Value) -> None:
            with T.serial(heads) as head:
                for start, lanes in pieces(dim // 2, simd.lanes):
                    rotate(simd, x, cos, sin, out, (i, head), start, lanes)

        for_each(n, heads * dim, token)

    def rotate(simd: Simd, x: Buffer, cos: Buffer, sin: Buffer, out: Buffer, row: tuple[Value, Value], low: int, lanes: int) -> None:
        high = low + kernel.head_dim // 2
        a, b = simd.load(x, (*row, low), lanes), simd.load(x, (*row, high), lanes)
        cosines, sines = ([simd.load(angles, (row[0], start), lanes) for start in (low, high)] for angles in (cos, sin))
        minus_b = splat(0.0, lanes) - b
        simd.store(out, simd.fma(a, cosines[0], minus_b * sines[0]), (*row, low))
        simd.store(out, simd.fma(b, cosines[1], a * sines[1]), (*row, high))

    return prim_func(body)
