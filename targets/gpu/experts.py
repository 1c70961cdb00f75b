"""Mixtures of experts: a warp for each row of numbers of which it finds the largest, and for each output of a token's expert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Value, argument, prim_func
from cupola.targets.generic.experts import in_block
from cupola.targets.generic.linear import activated
from cupola.targets.generic.rows import FLOATS, sizes_of
from cupola.targets.generic.weights import Stored, StoredKernel
from cupola.targets.gpu.emit import WARP, blocks, cached, gpu, keep, load, over_warp, registers, store
from cupola.targets.gpu.linear.plain import Rows
from cupola.targets.gpu.linear.weights import Weight, is_readable
from cupola.targets.next_step import INFINITY_BITS, magnitude
from cupola.targets.ops import ExpertLinear, GatedExpertLinear, TopK

_TAKEN, _LOWEST = -3.4e38, -3.3e38  # what is no candidate, and the least that one counts as
_MAX_COLUMNS = 1024  # of a row, which a warp holds in registers


def lower_top_k(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`TopK` of rows of known sizes."""
    op = TopK.match(call)
    inner = sizes_of(op.x) if op is not None else None
    if op is None or not inner or len(inner) > 3 or not op.k <= inner[-1] <= _MAX_COLUMNS or str(op.x.ty.dtype) not in FLOATS:
        return None
    function = builder.add_func(_top_k(inner, op.k, str(op.x.ty.dtype)), f"top_{op.k}_of_{inner[-1]}")
    return relax.op.call_tir(function, relax.Tuple([op.x]), out_ty=call.ty)


def _indices(place: Value, middle: Sequence[int]) -> list[Value]:
    """The indices of element `place` of a tensor [n, *middle]."""
    indices: list[Value] = []
    for size in reversed(middle):
        indices.insert(0, keep(place % size))
        place = keep(place // size)
    return [place, *indices]


@cached
def _top_k(inner: tuple[int, ...], k: int, dtype: str) -> tvm.tirx.PrimFunc:
    *middle, width = inner

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, *inner), dtype)
        out = argument("out", (n, *middle, k), "int32")
        with blocks(n * math.prod(middle), threads=WARP) as (place, lane):
            row = _indices(place, middle)
            count = -(-width // WARP)
            held, best = registers(count), registers(1)
            column, chosen = keep(T.cast(lane, "int32")), registers(1, "int32")
            for i in range(count):
                T.buffer_store(held, T.float32(_TAKEN), [i])
                with T.If(lane + T.int64(i * WARP) < T.int64(width)), T.Then():
                    value = keep(load(x, *row, lane + T.int64(i * WARP)))
                    bits = keep(magnitude(value))
                    number = T.max(value, T.float32(_LOWEST))
                    T.buffer_store(held, T.if_then_else(bits > T.int32(INFINITY_BITS), T.float32(_LOWEST), number), [i])
            for rank in range(k):
                T.buffer_store(best, T.float32(_TAKEN), [0])
                for i in range(count):
                    T.buffer_store(best, T.max(best[0], held[i]), [0])
                highest = keep(over_warp(best[0], T.max))
                T.buffer_store(chosen, T.int32(width), [0])
                for i in reversed(range(count)):
                    T.buffer_store(chosen, T.Select(held[i] == highest, column + T.int32(i * WARP), chosen[0]), [0])
                first = keep(over_warp(chosen[0], T.min))
                for i in range(count):
                    T.buffer_store(held, T.Select(first == column + T.int32(i * WARP), T.float32(_TAKEN), held[i]), [i])
                with T.If(lane == T.int64(0)), T.Then():
                    T.buffer_store(out, first, [*row, rank])

    return in_block(prim_func(body))


@dataclass(frozen=True)
class _Layer:
    """A layer.

    Attributes:
        width: columns of x.
        outputs: columns of the result.
        choices: experts of a token.
        is_shared: whether a token brings all its experts the same row.
        dtypes: of x, of the index and of the result.
        bias: its type; "" where there is none.
    """

    weight: StoredKernel
    width: int
    outputs: int
    choices: int
    is_shared: bool
    dtypes: tuple[str, str, str]
    gated: bool
    activation: str
    bias: str


def lower_expert_linear(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`ExpertLinear` and `GatedExpertLinear` of activations that are not quantized, and a weight that plain layers take too."""
    op = ExpertLinear.match(call) or GatedExpertLinear.match(call)
    stored = Stored.of(op.weight, op.scales, op.mins, op.format) if op is not None else None
    if op is None or stored is None or op.quantize_x or not is_readable(stored.kernel) or str(op.x.ty.dtype) not in FLOATS:
        return None
    layer = _Layer(
        weight=stored.kernel,
        width=int(op.x.ty.shape[-1]),
        outputs=int(call.ty.shape[2]),
        choices=int(op.index.ty.shape[1]),
        is_shared=op.x.ty.ndim == 2,
        dtypes=(str(op.x.ty.dtype), str(op.index.ty.dtype), str(call.ty.dtype)),
        gated=isinstance(op, GatedExpertLinear),
        activation=op.activation if isinstance(op, GatedExpertLinear) else "",
        bias="" if op.bias is None else str(op.bias.ty.dtype),
    )
    x = op.x if layer.is_shared else builder.emit(relax.op.reshape(op.x, [op.index.ty.shape[0] * layer.choices, layer.width]))
    given = [op.index, x, *Weight.tensors_of(stored, builder), *([] if op.bias is None else [op.bias])]
    label = f"{op.name}_{op.num_experts}x{layer.outputs}x{layer.width}_{stored.kernel.label}"
    return relax.op.call_tir(builder.add_func(_layer(layer), label), relax.Tuple(given), out_ty=call.ty)


@cached
def _layer(layer: _Layer) -> tvm.tirx.PrimFunc:
    outputs, choices, warps = layer.outputs, layer.choices, gpu().warps
    parts = 2 if layer.gated else 1

    def body() -> None:
        n = T.int64()
        index = argument("index", (n, choices), layer.dtypes[1])
        x = argument("x", (n if layer.is_shared else n * choices, layer.width), layer.dtypes[0])
        weight = Weight.arguments(layer.weight)
        bias = argument("bias", layer.weight.shape[:1], layer.bias) if layer.bias else None
        out = argument("out", (n, choices, outputs), layer.dtypes[2])
        with blocks(n * choices, -(-outputs // warps), threads=warps * WARP) as (place, block, thread):
            token, choice = keep(place // choices), keep(place % choices)
            column, lane = keep(block * warps + thread // WARP), thread % WARP
            with T.If(column < T.int64(outputs)), T.Then():
                row = token if layer.is_shared else place
                first = keep(T.cast(index[token, choice], "int64") * (parts * outputs) + column)
                rows = Rows(row + 1, keep(row), x, None, most=1)

                result = registers()
                for part in reversed(range(parts)):  # the gate last: ptxas then spills nothing
                    output = first + T.int64(part * outputs)
                    total = keep(rows.products(weight, output, layer.width, lane)[0])
                    total = total if bias is None else keep(total + load(bias, output))
                    value = activated(layer.activation, total) if part == 0 else total
                    T.buffer_store(result, value if part == parts - 1 else result[0] * value, [0])
                with T.If(lane == T.int64(0)), T.Then():
                    store(out, (token, choice, column), result[0])

    return prim_func(body)
