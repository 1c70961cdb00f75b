"""A linear layer as kernels for GPUs take it: what it does beside the product, and what a result becomes of a sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument
from cupola.targets.generic.linear import activated
from cupola.targets.generic.rows import FLOATS
from cupola.targets.generic.weights import Stored, StoredKernel
from cupola.targets.gpu.emit import keep, load, store
from cupola.targets.ops import GatedLinear, Linear


@dataclass(frozen=True)
class Layer:
    """A layer.

    Attributes:
        width: columns of x.
        dtypes: of x and of the result.
        norm, bias, residual: their types; "" where there is none.
    """

    name: str
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
    def parts(self) -> int:
        """Matrices in the weight, one above the other: of a gated layer two."""
        return 2 if self.gated else 1

    @property
    def outputs(self) -> int:
        """Columns of the result."""
        return self.weight.shape[0] // self.parts

    @property
    def label(self) -> str:
        """For the names of kernels."""
        return f"{self.name}_{self.outputs}x{self.width}_{self.weight.label}"

    def biases(self, tensors: LayerTensors, column: Value) -> list[Value] | None:
        """The numbers that are added to the sums of a column, if there are such."""
        if tensors.bias is None:
            return None
        return [keep(load(tensors.bias, column + T.int64(part * self.outputs))) for part in range(self.parts)]

    def finish(self, tensors: LayerTensors, row: Value, column: Value, sums: Sequence[Value], biases: Sequence[Value] | None) -> None:
        """Writes an element of the result: of its sum, or of a gated layer of its two."""
        sums = [keep(total + bias) for total, bias in zip(sums, biases, strict=True)] if biases is not None else sums
        result = keep(activated(self.activation, sums[0]))
        result = result * sums[1] if self.gated else result
        result = result + load(tensors.residual, row, column) if tensors.residual is not None else result
        store(tensors.out, (row, column), result)


@dataclass(frozen=True)
class LayerTensors:
    """The arguments of a layer's kernel beside its weight: x [m, K], norm [K], bias, residual and out [m, N]."""

    count: Value
    x: Buffer
    norm: Buffer | None
    bias: Buffer | None
    residual: Buffer | None
    out: Buffer

    @staticmethod
    def arguments(layer: Layer, count: Value, x: Buffer) -> LayerTensors:
        """Those that come behind the weight."""
        shape = (count, layer.outputs)
        return LayerTensors(
            count,
            x,
            argument("norm", (layer.width,), layer.norm) if layer.norm else None,
            argument("bias", layer.weight.shape[:1], layer.bias) if layer.bias else None,
            argument("residual", shape, layer.residual) if layer.residual else None,
            argument("out", shape, layer.dtypes[1]),
        )


def match_layer(call: relax.Call) -> tuple[Layer, Stored, relax.Expr, tuple[relax.Expr, ...]] | None:
    """`Linear` or `GatedLinear` of activations that are not quantized: the layer, its weight, x, and the tensors behind the weight."""
    op = Linear.match(call) or GatedLinear.match(call)
    stored = Stored.of(op.weight, op.scales, op.mins, op.format) if op is not None else None
    if op is None or stored is None or op.quantize_x or op.x.ty.ndim != 2 or str(op.x.ty.dtype) not in FLOATS:
        return None
    residual = op.residual if isinstance(op, Linear) else None
    norm_dtype, bias_dtype, residual_dtype = ("" if t is None else str(t.ty.dtype) for t in (op.norm, op.bias, residual))
    layer = Layer(
        name=op.name,
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
    return layer, stored, op.x, tuple(tensor for tensor in (op.norm, op.bias, residual) if tensor is not None)
