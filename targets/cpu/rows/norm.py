"""RMSNorm (arXiv:1910.07467) and LayerNorm (arXiv:1607.06450) over the last axis, a row at a time, in a fixed order of summation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import for_each, reduce_sum, sweep
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, argument, name, prim_func, splat
from cupola.targets.cpu.isa import ISA


@dataclass(frozen=True)
class _Kernel:
    isa: ISA
    inner: tuple[int, ...]  # all sizes but the first
    epsilon: float
    centered: bool  # LayerNorm: mean and shift


def lower_rms_norm(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`R.nn.rms_norm` over the last axis of a float32 tensor."""
    return _lower(isa, call, builder) if call.op.name == "relax.nn.rms_norm" else None


def lower_layer_norm(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`R.nn.layer_norm` over the last axis of a float32 tensor, with scale and shift."""
    if call.op.name != "relax.nn.layer_norm" or not (call.attrs.center and call.attrs.scale):
        return None
    return _lower(isa, call, builder)


def _lower(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    x = call.args[0].ty
    axes = [int(axis) % x.ndim for axis in call.attrs.axes]
    inner = tuple(getattr(size, "value", 0) for size in list(x.shape)[1:])
    if axes != [x.ndim - 1] or x.ndim < 2 or 0 in inner or x.dtype != "float32":
        return None
    kernel = _Kernel(isa, inner, float(call.attrs.epsilon), len(call.args) == 3)
    name = f"{'layer' if kernel.centered else 'rms'}_norm_{inner[-1]}"
    return relax.op.call_tir(builder.add_func(_build(kernel), name), relax.Tuple(list(call.args)), out_ty=call.ty)


@cache
def _build(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    *middle, width = kernel.inner

    def body() -> None:
        count = T.int64()
        x = argument("x", (count, *kernel.inner), "float32")
        weights = [argument(label, (width,), "float32") for label in (("scale", "shift") if kernel.centered else ("scale",))]
        out = argument("out", (count, *kernel.inner), "float32")

        def rows(outer: Value) -> None:
            with T.serial(math.prod(middle)) as row:
                _normalize(kernel, Simd(kernel.isa), x, weights, out, (outer, *_unravel(row, middle)))

        for_each(count, math.prod(kernel.inner), rows)

    return prim_func(body)


def _unravel(index: Value, sizes: list[int]) -> list[Value]:
    result: list[Value] = []
    for size in reversed(sizes):
        result, index = [index % size, *result], index // size
    return result


def _normalize(kernel: _Kernel, simd: Simd, x: Buffer, weights: list[Buffer], out: Buffer, row: tuple[Value, ...]) -> None:
    width = kernel.inner[-1]
    mean = T.float32(0)
    if kernel.centered:
        mean = name(reduce_sum(simd, width, lambda start, lanes, total: total + simd.load(x, (*row, start), lanes)) * T.float32(1 / width))

    def centered(start: Value | int, lanes: int) -> Value:
        value = simd.load(x, (*row, start), lanes)
        return name(value - splat(mean, lanes)) if kernel.centered else value

    def add_square(start: Value | int, lanes: int, total: Value) -> Value:
        value = centered(start, lanes)
        return simd.fma(value, value, total)

    squares = reduce_sum(simd, width, add_square)
    scale = name(T.float32(1) / T.sqrt(simd.fma(squares, T.float32(1 / width), T.float32(kernel.epsilon))))

    def write(start: Value | int, lanes: int, slot: int) -> None:
        normal = centered(start, lanes) * splat(scale, lanes)
        factors = [simd.load(weight, (start,), lanes) for weight in weights]
        simd.store(out, simd.fma(normal, *factors) if kernel.centered else normal * factors[0], (*row, start))

    sweep(width, simd.lanes, write)
