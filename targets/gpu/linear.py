"""Linear layers: a warp for each output, which it computes for some rows at once, so that a weight is read once for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, prim_func
from cupola.targets.generic.linear import activated
from cupola.targets.generic.rows import FLOATS
from cupola.targets.generic.weights import Stored, StoredKernel
from cupola.targets.gpu.emit import WARP, blocks, keep, load, registers, store, strided, warp_sum
from cupola.targets.gpu.weights import weight_value
from cupola.targets.ops import GatedLinear, Linear

WARPS = 4  # of a block
ROWS = 4  # of x that a warp multiplies with its weights at once


@dataclass(frozen=True)
class _Kernel:
    """A layer.

    Attributes:
        width: columns of x.
        dtypes: of x and of the result.
        norm, bias, residual: their types; "" where there is none.
    """

    weight: StoredKernel
    width: int
    dtypes: tuple[str, str]
    norm: str
    epsilon: float
    gated: bool
    activation: str
    bias: str
    residual: str

    @property
    def outputs(self) -> int:
        """Columns of the result."""
        return self.weight.shape[0] // (2 if self.gated else 1)


def lower_linear(call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Linear` and `GatedLinear` of activations that are not quantized, and a weight of floats or of codes without a table."""
    op = Linear.match(call) or GatedLinear.match(call)
    stored = Stored.of(op.weight, op.scales, op.mins, op.format) if op is not None else None
    if op is None or stored is None or op.quantize_x or op.x.ty.ndim != 2 or str(op.x.ty.dtype) not in FLOATS:
        return None
    if (form := stored.kernel.weight_format) is not None and form.table:
        return None
    residual = op.residual if isinstance(op, Linear) else None
    norm_dtype, bias_dtype, residual_dtype = ("" if t is None else str(t.ty.dtype) for t in (op.norm, op.bias, residual))
    kernel = _Kernel(
        weight=stored.kernel,
        width=int(op.x.ty.shape[1]),
        dtypes=(str(op.x.ty.dtype), str(call.ty.dtype)),
        norm=norm_dtype,
        epsilon=op.epsilon,
        gated=isinstance(op, GatedLinear),
        activation=op.activation,
        bias=bias_dtype,
        residual=residual_dtype,
    )
    given = [op.x, *stored.tensors, *(tensor for tensor in (op.norm, op.bias, residual) if tensor is not None)]
    label = f"{op.name}_{kernel.outputs}x{kernel.width}_{stored.kernel.label}"
    return relax.op.call_tir(builder.add_func(_layer(kernel), label), relax.Tuple(given), out_ty=call.ty)


@cache
def _layer(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    width, outputs = kernel.width, kernel.outputs

    def body() -> None:
        m = T.int64()
        x = argument("x", (m, width), kernel.dtypes[0])
        weight = kernel.weight.arguments()
        norm = argument("norm", (width,), kernel.norm) if kernel.norm else None
        bias = argument("bias", kernel.weight.shape[:1], kernel.bias) if kernel.bias else None
        residual = argument("residual", (m, outputs), kernel.residual) if kernel.residual else None
        out = argument("out", (m, outputs), kernel.dtypes[1])
        groups = (m + T.int64(ROWS - 1)) // T.int64(ROWS)
        with blocks(-(-outputs // WARPS), groups, threads=WARPS * WARP) as (block, group, thread):
            column, lane = keep(block * WARPS + thread // WARP), thread % WARP
            with T.If(column < T.int64(outputs)), T.Then():
                rows = _Rows(m, keep(group * ROWS))
                factors = _norm_factors(kernel, x, rows, lane) if norm is not None else None

                def value(r: int, k: Value) -> Value:
                    value = load(x, rows.index(r), k)
                    return value if factors is None or norm is None else value * factors[r] * load(norm, k)

                def products(which: Value) -> list[Value]:
                    sums = _dots(lambda k: keep(weight_value(weight, which, k)), value, rows, width, lane)
                    return [keep(total + load(bias, which)) if bias is not None else total for total in sums]

                first = products(column)
                second = products(column + T.int64(outputs)) if kernel.gated else None

                def write(r: int) -> None:
                    result = keep(activated(kernel.activation, first[r]))
                    result = result * second[r] if second is not None else result
                    result = result + load(residual, rows.index(r), column) if residual is not None else result
                    store(out, (rows.index(r), column), result)

                with T.If(lane == T.int64(0)), T.Then():
                    rows.each(write)

    return prim_func(body)


@dataclass(frozen=True)
class _Rows:
    """The rows of x from `start` on that a warp works on, at most ROWS. All its lanes have the same ones."""

    count: Value  # of x
    start: Value

    def index(self, r: int) -> Value:
        return self.start + T.int64(r)

    def each(self, do: Callable[[int], None]) -> None:
        """Does something for each row that there is."""
        do(0)
        for r in range(1, ROWS):
            with T.If(self.index(r) < self.count), T.Then():
                do(r)


def _norm_factors(kernel: _Kernel, x: Buffer, rows: _Rows, lane: Value) -> list[Value]:
    """The factor of each row by RMSNorm (arXiv:1910.07467). Every warp finds it for itself: rows are short, and in the cache."""
    squares = _dots(None, lambda r, k: keep(load(x, rows.index(r), k)), rows, kernel.width, lane)
    return [keep(T.float32(1) / T.sqrt(total * T.float32(1 / kernel.width) + T.float32(kernel.epsilon))) for total in squares]


def _dots(
    weight: Callable[[Value], Value] | None, value: Callable[[int, Value], Value], rows: _Rows, width: int, lane: Value
) -> list[Value]:
    """For each row the sum over k of its values times the weight's, or squared where there is none. Each lane adds up every 32nd."""
    sums = registers(ROWS)
    for r in range(ROWS):
        T.buffer_store(sums, T.float32(0), [r])
    with strided(width, lane, WARP) as k:
        factor = None if weight is None else weight(k)

        def add(r: int) -> None:
            found = value(r, k)
            T.buffer_store(sums, sums[r] + found * (found if factor is None else factor), [r])

        rows.each(add)
    rows.each(lambda r: T.buffer_store(sums, warp_sum(sums[r]), [r]))
    return [sums[r] for r in range(ROWS)]
