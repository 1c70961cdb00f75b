"""Rotary position embedding (arXiv:2104.09864), applied in one pass over the heads of a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import for_each
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, argument, name, pieces, prim_func, splat
from cupola.targets.cpu.isa import ISA
from cupola.targets.ops import Rotary

_Load: TypeAlias = Callable[[int, int], Value]  # (first dimension, lanes)
_LoadAngles: TypeAlias = Callable[[int, int], tuple[Value, Value]]


@dataclass(frozen=True)
class Rotation:
    """A head of `dim` dimensions, the first `rotated` of which are: each with the one half of them away, or (interleaved) its neighbour."""

    dim: int
    rotated: int
    interleaved: bool


@dataclass(frozen=True)
class _Kernel:
    isa: ISA
    num_heads: int
    head_dim: int
    angle_dtype: str
    interleaved: bool


def lower_rotary(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Rotary` of float32 heads of a known, even size."""
    op = Rotary.match(call)
    if op is None or op.x.ty.dtype != "float32":
        return None
    heads, dim = (getattr(size, "value", 1) for size in list(op.x.ty.shape)[1:])
    if dim % 2 != 0:
        return None
    kernel = _Kernel(isa, heads, dim, str(op.cos.ty.dtype), bool(op.interleaved))
    gv = builder.add_func(_build(kernel), f"rotary_{heads}x{dim}")
    return relax.op.call_tir(gv, relax.Tuple([op.x, op.cos, op.sin]), out_ty=call.ty)


@cache
def _build(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    simd = Simd(kernel.isa)

    def body() -> None:
        n, heads, dim = T.int64(), kernel.num_heads, kernel.head_dim
        rotation = Rotation(dim, dim, kernel.interleaved)
        x = argument("x", (n, heads, dim), "float32")
        cos, sin = (argument(label, (n, dim), kernel.angle_dtype) for label in ("cos", "sin"))
        out = argument("out", (n, heads, dim), "float32")

        def token(i: Value) -> None:
            with T.serial(heads) as head:
                rotate(simd, rotation, x, (i, head, 0), cos, sin, i, lambda at, value: simd.store(out, value, (i, head, at)))

        for_each(n, heads * dim, token)

    return prim_func(body)


def rotate(
    simd: Simd,
    rotation: Rotation,
    x: Buffer,
    first: tuple[Value | int, ...],
    cos: Buffer | None,
    sin: Buffer | None,
    token: Value,
    store: Callable[[int, Value], None],
) -> None:
    """Stores a head of x, from index `first` on, rotated by the angles of `token` (not at all if there are none)."""
    *outer, start = first
    rotated = rotation.rotated if cos is not None else 0
    if cos is not None and sin is not None:
        turn = _rotate_pairs if rotation.interleaved else _rotate_halves
        turn(
            simd,
            rotated,
            lambda at, lanes: simd.load(x, (*outer, start + at), lanes),
            lambda at, lanes: (simd.load(cos, (token, at), lanes), simd.load(sin, (token, at), lanes)),
            store,
        )
    for at, lanes in pieces(rotation.dim - rotated, simd.lanes):
        store(rotated + at, simd.load(x, (*outer, start + rotated + at), lanes))


def _rotate_halves(simd: Simd, dim: int, load: _Load, angles: _LoadAngles, store: Callable[[int, Value], None]) -> None:
    for low, lanes in pieces(dim // 2, simd.lanes):
        high = low + dim // 2
        a, b = load(low, lanes), load(high, lanes)
        (low_cos, low_sin), (high_cos, high_sin) = angles(low, lanes), angles(high, lanes)
        store(low, simd.fma(a, low_cos, (splat(0.0, lanes) - b) * low_sin))
        store(high, simd.fma(b, high_cos, a * high_sin))


def _rotate_pairs(simd: Simd, dim: int, load: _Load, angles: _LoadAngles, store: Callable[[int, Value], None]) -> None:
    """A vector, times cos, plus the vector with each pair swapped and the first of it negated, times sin."""
    for at, lanes in pieces(dim, simd.lanes):
        value, (cos, sin) = load(at, lanes), angles(at, lanes)
        swapped = name(T.Shuffle([value], [lane ^ 1 for lane in range(lanes)]))
        minus = splat(0.0, lanes) - swapped
        turned = name(T.Shuffle([swapped, minus], [lane if lane % 2 else lane + lanes for lane in range(lanes)]))
        store(at, simd.fma(value, cos, turned * sin))
