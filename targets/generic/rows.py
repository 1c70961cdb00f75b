"""Norms, rotary embedding and embeddings, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, name, prim_func
from cupola.targets.generic.loops import each, load, store, total
from cupola.targets.generic.weights import Stored, StoredKernel
from cupola.targets.ops import Embedding, Rotary

FLOATS = ("float32", "float16", "bfloat16")


def sizes_of(x: relax.Expr) -> tuple[int, ...] | None:
    """The sizes of a tensor but for the first; None if one of them is not known."""
    sizes = list(x.ty.shape)[1:]
    return tuple(map(int, sizes)) if all(isinstance(size, tvm.tirx.IntImm) for size in sizes) else None


Kernel: TypeAlias = Callable[..., tvm.tirx.PrimFunc]


def lower_norm(
    call: relax.Call, builder: relax.BlockBuilder, kernel: Kernel | None = None, max_axes: int | None = None
) -> relax.Expr | None:
    """`R.nn.rms_norm`, or `R.nn.layer_norm` with scale and shift, over the last axis; by this file's kernel or another one.

    `max_axes` is the most that a row's tensor may have beside the first.
    """
    centered = call.op.name == "relax.nn.layer_norm"
    if not centered and call.op.name != "relax.nn.rms_norm":
        return None
    x, inner = call.args[0], sizes_of(call.args[0])
    if centered and not (call.attrs.center and call.attrs.scale):
        return None
    if (
        not inner
        or (max_axes is not None and len(inner) > max_axes)
        or [int(axis) % x.ty.ndim for axis in call.attrs.axes] != [x.ty.ndim - 1]
    ):
        return None
    dtypes = (str(x.ty.dtype), str(call.args[1].ty.dtype), str(call.ty.dtype))
    function, kind = (kernel or _norm)(inner, dtypes, float(call.attrs.epsilon), centered), "layer" if centered else "rms"
    return relax.op.call_tir(builder.add_func(function, f"{kind}_norm_{inner[-1]}"), relax.Tuple(list(call.args)), out_ty=call.ty)


@cache
def _norm(inner: tuple[int, ...], dtypes: tuple[str, str, str], epsilon: float, centered: bool) -> tvm.tirx.PrimFunc:
    *middle, width = inner

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, *inner), dtypes[0])
        weights = [argument(label, (width,), dtypes[1]) for label in (("scale", "shift") if centered else ("scale",))]
        out = argument("out", (n, *inner), dtypes[2])
        with each(n, *middle) as row:
            normalize(width, epsilon, lambda i: load(x, *row, i), weights, lambda i, value: store(out, (*row, i), value))

    return prim_func(body)


def normalize(
    width: int, epsilon: float, x: Callable[[Value], Value], weights: Sequence[Buffer], write: Callable[[Value, Value], None]
) -> None:
    """Writes a normalized row: by RMSNorm (arXiv:1910.07467) with a scale, by LayerNorm (arXiv:1607.06450) with a scale and a shift."""
    scale, *shift = weights
    mean = name(total(width, x) * T.float32(1 / width)) if shift else T.float32(0)

    def centered(i: Value) -> Value:
        return x(i) - mean

    squares = total(width, lambda i: centered(i) * centered(i))
    factor = name(T.float32(1) / T.sqrt(squares * T.float32(1 / width) + T.float32(epsilon)))
    with each(width) as (i,):
        value = centered(i) * factor * load(scale, i)
        write(i, value + load(shift[0], i) if shift else value)


def lower_rotary(call: relax.Call, builder: relax.BlockBuilder, kernel: Kernel | None = None) -> relax.Expr | None:
    """`Rotary` of heads of a known, even size; by this file's kernel or another one."""
    op = Rotary.match(call)
    inner = sizes_of(op.x) if op is not None else None
    if op is None or inner is None or inner[-1] % 2:
        return None
    heads, dim = inner
    function = (kernel or _rotary)(heads, dim, bool(op.interleaved), (str(op.x.ty.dtype), str(op.cos.ty.dtype)))
    return relax.op.call_tir(builder.add_func(function, f"rotary_{heads}x{dim}"), relax.Tuple([op.x, op.cos, op.sin]), out_ty=call.ty)


@cache
def _rotary(heads: int, dim: int, interleaved: bool, dtypes: tuple[str, str]) -> tvm.tirx.PrimFunc:
    def body() -> None:
        n = T.int64()
        x = argument("x", (n, heads, dim), dtypes[0])
        angles = argument("cos", (n, dim), dtypes[1]), argument("sin", (n, dim), dtypes[1])
        out = argument("out", (n, heads, dim), dtypes[0])
        with each(n, heads) as (i, head):
            rotate(lambda d: load(x, i, head, d), lambda d, value: store(out, (i, head, d), value), dim, dim, interleaved, angles, i)

    return prim_func(body)


def rotate(
    x: Callable[[Value], Value],
    write: Callable[[Value, Value], None],
    dim: int,
    rotated: int,
    interleaved: bool,
    angles: tuple[Buffer, Buffer] | None,
    token: Value,
) -> None:
    """Writes a head x of `dim` dimensions, the first `rotated` of them turned by a token's angles (arXiv:2104.09864): each with the one
    half of them away, or (interleaved) with its neighbour."""
    first = 0
    if angles is not None:
        cos, sin = angles
        first, half = rotated, rotated // 2
        with each(half) as (i,):
            low, high = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            write(low, x(low) * load(cos, token, low) - x(high) * load(sin, token, low))
            write(high, x(high) * load(cos, token, high) + x(low) * load(sin, token, high))
    with each(dim - first) as (i,):
        write(first + i, x(first + i))


def lower_take(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`R.take(weight[V, K], tokens[n], axis=0)` of floats. Ids are trusted. Known rows are picked while weights are packed."""
    if call.op.name != "relax.take" or call.attrs.axis is None or int(call.attrs.axis) != 0:
        return None
    weight, tokens = call.args
    if isinstance(tokens, tvm.ir.GenericConst):
        return None
    if not isinstance(tokens.ty, relax.TensorType) or tokens.ty.ndim != 1 or weight.ty.ndim != 2 or weight.ty.dtype not in FLOATS:
        return None
    stored, width = Stored.of(weight), int(weight.ty.shape[1]) if sizes_of(weight) else 0
    return _rows(stored, width, tokens, call.ty, builder) if stored is not None else None


def lower_embedding(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Embedding` of a quantized table."""
    op = Embedding.match(call)
    stored = Stored.of(op.weight, op.scales, op.mins, op.format, op.super_scales, op.super_mins) if op is not None else None
    return _rows(stored, int(call.ty.shape[1]), op.tokens, call.ty, builder) if op is not None and stored is not None else None


def _rows(stored: Stored, width: int, tokens: relax.Expr, out: relax.TensorType, builder: relax.BlockBuilder) -> relax.Expr:
    function = _embedding(stored.kernel, width, str(tokens.ty.dtype), str(out.dtype))
    called = builder.add_func(function, f"embedding_{stored.kernel.shape[0]}x{width}_{stored.kernel.label}")
    return relax.op.call_tir(called, relax.Tuple([*stored.tensors, tokens]), out_ty=out)


@cache
def _embedding(weight: StoredKernel, width: int, token_dtype: str, out_dtype: str) -> tvm.tirx.PrimFunc:
    def body() -> None:
        n = T.int64()
        table = weight.arguments()
        tokens = argument("tokens", (n,), token_dtype)
        out = argument("out", (n, width), out_dtype)
        with each(n, width) as (i, k):
            store(out, (i, k), table.value(T.cast(tokens[i], "int64"), k))

    return prim_func(body)
