"""Linear layers: row by row, a product at a time, its terms in order, of weights as they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, local, name, prim_func
from cupola.targets.generic.loops import code_of, each, largest, load, step_of, store, total
from cupola.targets.generic.rows import FLOATS, normalize
from cupola.targets.generic.weights import Stored, StoredArguments, StoredKernel
from cupola.targets.ops import GatedLinear, Linear


@dataclass(frozen=True)
class RowShape:
    """How a kernel reads rows of x.

    Attributes:
        width: columns of x.
        quantize_x: the group of x's codes; 0: x stays as it is.
    """

    width: int
    quantize_x: int

    @property
    def groups(self) -> int:
        """Groups of a row of codes."""
        return -(-self.width // self.quantize_x)


@dataclass(frozen=True)
class _Kernel(RowShape):
    """A layer.

    Attributes:
        dtypes: of x and of the result.
        norm, bias, residual: their types; "" where there is none.
    """

    weight: StoredKernel
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
    """`Linear` and `GatedLinear` of a weight of known shape."""
    op = Linear.match(call) or GatedLinear.match(call)
    stored = Stored.of(op.weight, op.scales, op.mins, op.format, op.super_scales, op.super_mins) if op is not None else None
    if op is None or stored is None or op.x.ty.ndim != 2 or str(op.x.ty.dtype) not in FLOATS:
        return None
    residual = op.residual if isinstance(op, Linear) else None
    norm_dtype, bias_dtype, residual_dtype = ("" if t is None else str(t.ty.dtype) for t in (op.norm, op.bias, residual))
    kernel = _Kernel(
        weight=stored.kernel,
        width=int(op.x.ty.shape[1]),
        dtypes=(str(op.x.ty.dtype), str(call.ty.dtype)),
        norm=norm_dtype,
        epsilon=op.epsilon,
        quantize_x=op.quantize_x,
        gated=isinstance(op, GatedLinear),
        activation=op.activation,
        bias=bias_dtype,
        residual=residual_dtype,
    )
    given = [op.x, *stored.tensors, *(tensor for tensor in (op.norm, op.bias, residual) if tensor is not None)]
    label = f"{op.name}_{kernel.outputs}x{kernel.width}_{stored.kernel.label}" + ("_a8" if op.quantize_x else "")
    return relax.op.call_tir(builder.add_func(_layer(kernel), label), relax.Tuple(given), out_ty=call.ty)


@cache
def _layer(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    def body() -> None:
        m, outputs = T.int64(), kernel.outputs
        x = argument("x", (m, kernel.width), kernel.dtypes[0])
        weight = kernel.weight.arguments()
        norm = argument("norm", (kernel.width,), kernel.norm) if kernel.norm else None
        bias = argument("bias", kernel.weight.shape[:1], kernel.bias) if kernel.bias else None
        residual = argument("residual", (m, outputs), kernel.residual) if kernel.residual else None
        out = argument("out", (m, outputs), kernel.dtypes[1])
        with each(m) as (row,):
            dot = _normalized(kernel, x, norm, row)

            def product(column: Value) -> Value:
                value = dot.times(weight, column)
                return name(value + load(bias, column) if bias is not None else value)

            with each(outputs) as (column,):
                value = activated(kernel.activation, product(column))
                if kernel.gated:
                    value = name(value) * product(column + outputs)
                store(out, (row, column), value + load(residual, row, column) if residual is not None else value)

    return prim_func(body)


def _normalized(kernel: _Kernel, x: Buffer, norm: Buffer | None, row: Value) -> Row:
    """A row of x, normalized where the layer does that."""

    def write(numbers: Buffer) -> None:
        if norm is not None:
            normalize(kernel.width, kernel.epsilon, lambda k: load(x, row, k), [norm], lambda k, value: T.buffer_store(numbers, value, [k]))
        else:
            with each(kernel.width) as (k,):
                T.buffer_store(numbers, load(x, row, k), [k])

    return Row.read(kernel, write)


@dataclass(frozen=True)
class Row:
    """A row of x: float32 numbers, and perhaps codes, and what those are multiples of by groups."""

    shape: RowShape
    numbers: Buffer
    codes: Buffer | None = None
    steps: Buffer | None = None

    @staticmethod
    def read(shape: RowShape, write: Callable[[Buffer], None]) -> Row:
        """The row whose numbers `write` stores, from the first element on."""
        width, group = shape.width, shape.quantize_x
        numbers = local(shape.groups * group if group else width)
        write(numbers)
        if not group:
            return Row(shape, numbers)
        with each(shape.groups * group - width) as (k,):
            T.buffer_store(numbers, T.float32(0), [width + k])
        codes, steps = local(shape.groups * group, "int8"), local(shape.groups)
        with each(shape.groups) as (i,):
            step, inverse = step_of(largest(group, lambda k: numbers[i * group + k]))
            T.buffer_store(steps, step, [i])
            with each(group) as (k,):
                T.buffer_store(codes, code_of(numbers[i * group + k], inverse), [i * group + k])
        return Row(shape, numbers, codes, steps)

    def times(self, weight: StoredArguments, column: Value) -> Value:
        """The product with a row of the weight. Codes are summed as integers, as far as they share scales."""
        width, group, form = self.shape.width, self.shape.quantize_x, weight.format
        codes, steps = self.codes, self.steps
        if codes is None or steps is None:
            return total(width, lambda k: self.numbers[k] * weight.value(column, k))
        if form is None or form.table:
            return total(width, lambda k: steps[k // group] * T.cast(codes[k], "float32") * weight.value(column, k))
        size = math.gcd(form.group_size, group)

        def part(i: Value) -> Value:
            first = i * size

            def code(k: Value) -> Value:
                return T.cast(codes[first + k], "int32")

            def stored(k: Value) -> Value:
                return T.cast(weight.weight[column, first + k], "int32") - weight.zero(column, first)

            low, sums = weight.min(column, first), weight.scale(column, first)
            sums = sums * T.cast(total(size, lambda k: code(k) * stored(k), "int32"), "float32")
            if low is not None:
                sums = sums + low * T.cast(total(size, code, "int32"), "float32")
            return sums * steps[first // group]

        return total(-(-width // size), part)


def activated(kind: str, x: Value) -> Value:
    """One of `ops.ACTIVATIONS`."""
    one, half = T.float32(1), T.float32(0.5)
    if kind == "relu":
        return T.max(x, T.float32(0))
    if kind == "silu":
        return x / (one + T.exp(T.float32(0) - x))
    if kind == "gelu":
        return half * x * (one + T.erf(x * T.float32(math.sqrt(0.5))))
    if kind == "gelu_tanh":
        return half * x * (one + T.tanh(T.float32(math.sqrt(2 / math.pi)) * (x + T.float32(0.044715) * x * x * x)))
    assert kind == "", kind
    return x
