"""Rotary position embedding (arXiv:2104.09864), halves rotated, applied in one pass over the heads of a token."""

from __future__ import annotations

from collections.abc import Callable
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
                rotate(simd, x, (i, head, 0), cos, sin, i, (dim, dim), lambda at, value: simd.store(out, value, (i, head, at)))

        for_each(n, heads * dim, token)

    return prim_func(body)


def rotate(
    simd: Simd,
    x: Buffer,
    first: tuple[Value | int, ...],
    cos: Buffer | None,
    sin: Buffer | None,
    token: Value,
    dims: tuple[int, int],
    store: Callable[[int, Value], None],
) -> None:
    """Stores a head of x, from index `first` on, with its leading dimensions rotated; `dims` are the head's size and how many those are."""
    dim, rotated = dims
    *outer, start = first
    if cos is not None and sin is not None:
        for low, lanes in pieces(rotated // 2, simd.lanes):
            high = low + rotated // 2
            a, b = simd.load(x, (*outer, start + low), lanes), simd.load(x, (*outer, start + high), lanes)
            cosines, sines = ([simd.load(angles, (token, at), lanes) for at in (low, high)] for angles in (cos, sin))
            minus_b = splat(0.0, lanes) - b
            store(low, simd.fma(a, cosines[0], minus_b * sines[0]))
            store(high, simd.fma(b, cosines[1], a * sines[1]))
    for at, lanes in pieces(dim - rotated, simd.lanes):
        store(rotated + at, simd.load(x, (*outer, start + rotated + at), lanes))
