"""Mixtures of experts: a token after the other, its experts in the order in which it names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax, s_tir
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, local, name, prim_func
from cupola.targets.generic.linear import Row, RowShape, activated
from cupola.targets.generic.loops import each, load, store
from cupola.targets.generic.rows import FLOATS, sizes_of
from cupola.targets.generic.weights import Stored, StoredKernel
from cupola.targets.ops import ExpertLinear, GatedExpertLinear, TopK

_LOWEST = -3.4028234663852886e38  # of float32


def lower_top_k(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`TopK` of rows of known sizes."""
    op = TopK.match(call)
    inner = sizes_of(op.x) if op is not None else None
    if op is None or not inner or op.k > inner[-1] or str(op.x.ty.dtype) not in FLOATS:
        return None
    function = builder.add_func(_top_k(inner, op.k, str(op.x.ty.dtype)), f"top_{op.k}_of_{inner[-1]}")
    return relax.op.call_tir(function, relax.Tuple([op.x]), out_ty=call.ty)


@cache
def _top_k(inner: tuple[int, ...], k: int, dtype: str) -> tvm.tirx.PrimFunc:
    *middle, width = inner

    def body() -> None:
        n = T.int64()
        x = argument("x", (n, *inner), dtype)
        out = argument("out", (n, *middle, k), "int32")
        with each(n, *middle) as row:
            largest_of_row(width, k, lambda i: load(x, *row, i), lambda i, column: T.buffer_store(out, column, [*row, i]))

    return in_block(prim_func(body))


def in_block(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """The same with a block around its body: Relax, asking whether a function of one argument only reshapes it, expects one."""
    block = s_tir.SBlock([], [], [], "root", function.body)
    return function.with_body(s_tir.SBlockRealize([], True, block))


def largest_of_row(width: int, k: int, x: Callable[[Value], Value], write: Callable[[Value, Value], None]) -> None:
    """`write(i, column)` for the columns of the `k` largest of `width` numbers: as many passes over those that are left."""
    numbers, taken, best = local(width), local(width, "int32"), local(1, "int32")
    with each(width) as (i,):
        value = name(x(i))
        T.buffer_store(numbers, T.Select(value == value, T.max(value, T.float32(_LOWEST)), T.float32(_LOWEST)), [i])
        T.buffer_store(taken, T.int32(0), [i])
    with each(k) as (place,):
        T.buffer_store(best, T.int32(-1), [0])
        with each(width) as (i,):
            is_larger = T.Or(best[0] < T.int32(0), numbers[i] > numbers[T.max(best[0], T.int32(0))])
            with T.If(T.And(taken[i] == T.int32(0), is_larger)), T.Then():
                T.buffer_store(best, T.cast(i, "int32"), [0])
        T.buffer_store(taken, T.int32(1), [best[0]])
        write(place, best[0])


@dataclass(frozen=True)
class _Kernel(RowShape):
    """A layer.

    Attributes:
        outputs: columns of the result.
        choices: experts that a token goes to.
        shared: whether a token brings all its experts the same row.
        dtypes: of x, of the index and of the result.
        bias: its type; "" where there is none.
    """

    weight: StoredKernel
    outputs: int
    choices: int
    shared: bool
    dtypes: tuple[str, str, str]
    gated: bool
    activation: str
    bias: str


def lower_expert_linear(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`ExpertLinear` and `GatedExpertLinear` of a weight of known shape."""
    op = ExpertLinear.match(call) or GatedExpertLinear.match(call)
    stored = Stored.of(op.weight, op.scales, op.mins, op.format, op.super_scales, op.super_mins) if op is not None else None
    if op is None or stored is None or op.x.ty.ndim not in (2, 3) or str(op.x.ty.dtype) not in FLOATS:
        return None
    gated, rows = isinstance(op, GatedExpertLinear), stored.kernel.shape[0] // op.num_experts
    kernel = _Kernel(
        width=int(op.x.ty.shape[-1]),
        quantize_x=op.quantize_x,
        weight=stored.kernel,
        outputs=rows // 2 if gated else rows,
        choices=int(op.index.ty.shape[1]),
        shared=op.x.ty.ndim == 2,
        dtypes=(str(op.x.ty.dtype), str(op.index.ty.dtype), str(call.ty.dtype)),
        gated=gated,
        activation=op.activation if isinstance(op, GatedExpertLinear) else "",
        bias="" if op.bias is None else str(op.bias.ty.dtype),
    )
    given = [op.x, op.index, *stored.tensors, *([] if op.bias is None else [op.bias])]
    label = f"{op.name}_{op.num_experts}x{kernel.outputs}x{kernel.width}_{stored.kernel.label}" + ("_a8" if op.quantize_x else "")
    return relax.op.call_tir(builder.add_func(_layer(kernel), label), relax.Tuple(given), out_ty=call.ty)


@cache
def _layer(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    def body() -> None:
        n, choices, outputs = T.int64(), kernel.choices, kernel.outputs
        rows = outputs * (2 if kernel.gated else 1)
        x = argument("x", (n, kernel.width) if kernel.shared else (n, choices, kernel.width), kernel.dtypes[0])
        index = argument("index", (n, choices), kernel.dtypes[1])
        weight = kernel.weight.arguments()
        bias = argument("bias", kernel.weight.shape[:1], kernel.bias) if kernel.bias else None
        out = argument("out", (n, choices, outputs), kernel.dtypes[2])
        with each(n, choices) as (token, choice):
            row = Row.read(kernel, _copy_of(kernel, x, (token,) if kernel.shared else (token, choice)))
            first = name(T.cast(index[token, choice], "int64") * rows)

            def product(column: Value) -> Value:
                value = row.times(weight, first + column)
                return name(value + load(bias, first + column) if bias is not None else value)

            with each(outputs) as (column,):
                value = activated(kernel.activation, product(column))
                if kernel.gated:
                    value = name(value) * product(column + outputs)
                store(out, (token, choice, column), value)

    return prim_func(body)


def _copy_of(kernel: _Kernel, x: Buffer, place: tuple[Value, ...]) -> Callable[[Buffer], None]:
    def write(numbers: Buffer) -> None:
        with each(kernel.width) as (k,):
            T.buffer_store(numbers, load(x, *place, k), [k])

    return write
