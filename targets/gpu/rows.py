"""Norms, rotary embedding and embeddings: a warp for each row."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import argument, prim_func
from cupola.targets.generic import rows as generic
from cupola.targets.generic.rows import FLOATS, sizes_of
from cupola.targets.generic.weights import Stored, StoredKernel
from cupola.targets.gpu.emit import WARP, blocks, cached, keep, load, registers, store, strided, warp_sum
from cupola.targets.gpu.linear.tiles import Tiles, is_tileable
from cupola.targets.gpu.linear.weights import Weight, is_readable
from cupola.targets.ops import Embedding


def lower_norm(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`R.nn.rms_norm`, or `R.nn.layer_norm` with scale and shift, over the last axis."""
    return generic.lower_norm(call, builder, _norm, max_axes=3)  # the axes of a grid


@cached
def _norm(inner: tuple[int, ...], dtypes: tuple[str, str, str], epsilon: float, centered: bool) -> tvm.tirx.PrimFunc:
    """By RMSNorm (arXiv:1910.07467) with a scale, by LayerNorm (arXiv:1607.06450) with a scale and a shift."""
    *middle, width = inner

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, *inner), dtypes[0])
        weights = [argument(label, (width,), dtypes[1]) for label in (("scale", "shift") if centered else ("scale",))]
        out = argument("out", (n, *inner), dtypes[2])
        with blocks(n, *middle, threads=WARP) as (*row, lane):
            sums = registers(2)
            for i in range(2):
                T.buffer_store(sums, T.float32(0), [i])
            if centered:
                with strided(width, lane, WARP) as k:
                    T.buffer_store(sums, sums[1] + load(x, *row, k), [1])
            mean = keep(warp_sum(sums[1]) * T.float32(1 / width)) if centered else T.float32(0)
            with strided(width, lane, WARP) as k:
                value = keep(load(x, *row, k) - mean)
                T.buffer_store(sums, sums[0] + value * value, [0])
            factor = keep(T.float32(1) / T.sqrt(warp_sum(sums[0]) * T.float32(1 / width) + T.float32(epsilon)))
            with strided(width, lane, WARP) as k:
                value = (load(x, *row, k) - mean) * factor * load(weights[0], k)
                store(out, (*row, k), value + load(weights[1], k) if centered else value)

    return prim_func(body)


def lower_rotary(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Rotary` of heads of a known, even size."""
    return generic.lower_rotary(call, builder, _rotary)


@cached
def _rotary(heads: int, dim: int, interleaved: bool, dtypes: tuple[str, str]) -> tvm.tirx.PrimFunc:
    """Turns pairs of dimensions by a token's angles (arXiv:2104.09864): each with the one half of them away, or with its neighbour."""
    half = dim // 2

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, heads, dim), dtypes[0])
        cos, sin = argument("cos", (n, dim), dtypes[1]), argument("sin", (n, dim), dtypes[1])
        out = argument("out", (n, heads, dim), dtypes[0])
        with blocks(n, heads, threads=WARP) as (i, head, lane), strided(half, lane, WARP) as pair:
            low, high = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
            a, b = keep(load(x, i, head, low)), keep(load(x, i, head, high))
            store(out, (i, head, low), a * load(cos, i, low) - b * load(sin, i, low))
            store(out, (i, head, high), b * load(cos, i, high) + a * load(sin, i, high))

    return prim_func(body)


def lower_take(call: relax.Call, builder: relax.BlockBuilder, tiled: bool = False) -> relax.Expr | None:
    """`R.take(weight[V, K], tokens[n], axis=0)` of floats. Token ids are trusted. `tiled`: weights lie in tiles where there are such."""
    if call.op.name != "relax.take" or call.attrs.axis is None or int(call.attrs.axis) != 0:
        return None
    weight, tokens = call.args
    if not isinstance(tokens.ty, relax.TensorType) or tokens.ty.ndim != 1 or weight.ty.ndim != 2 or weight.ty.dtype not in FLOATS:
        return None
    stored, width = Stored.of(weight), int(weight.ty.shape[1]) if sizes_of(weight) else 0
    return _rows(stored, width, tokens, call.ty, builder, tiled) if stored is not None else None


def lower_embedding(call: relax.Call, builder: relax.BlockBuilder, tiled: bool = False) -> relax.Expr | None:
    """`Embedding` of a quantized table whose codes are numbers."""
    op = Embedding.match(call)
    stored = Stored.of(op.weight, op.scales, op.mins, op.format) if op is not None else None
    if op is None or stored is None or not is_readable(stored.kernel):
        return None
    return _rows(stored, int(call.ty.shape[1]), op.tokens, call.ty, builder, tiled)


def _rows(stored: Stored, width: int, tokens: relax.Expr, out: relax.TensorType, builder: relax.BlockBuilder, tiled: bool) -> relax.Expr:
    layout = Tiles if tiled and is_tileable(stored.kernel) else Weight
    function = _embedding(layout, stored.kernel, width, str(tokens.ty.dtype), str(out.dtype))
    called = builder.add_func(function, f"embedding_{stored.kernel.shape[0]}x{width}_{stored.kernel.label}")
    return relax.op.call_tir(called, relax.Tuple([*layout.tensors_of(stored, builder), tokens]), out_ty=out)


@cached
def _embedding(layout: type[Tiles | Weight], weight: StoredKernel, width: int, token_dtype: str, out_dtype: str) -> tvm.tirx.PrimFunc:
    def body() -> None:
        n = T.int64()
        table = layout.arguments(weight)
        tokens = argument("tokens", (n,), token_dtype)
        out = argument("out", (n, width), out_dtype)
        with blocks(n, threads=4 * WARP) as (i, thread):
            token = keep(T.cast(tokens[i], "int64"))
            with strided(width, thread, 4 * WARP) as k:
                store(out, (i, k), table.element(token, k))

    return prim_func(body)
