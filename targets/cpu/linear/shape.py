"""The shape of a linear layer, and what kernels of all kinds of weights make of its other operands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tvm import relax

from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, argument
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.epilogue import Epilogue, adds_in_place
from cupola.targets.cpu.linear.packing import PANEL, num_panels, pack_columns, pack_gated_columns, shape_of
from cupola.targets.cpu.linear.quantized_packing import SLICE, Codes
from cupola.targets.ops import GatedLinear, Linear

Layer: TypeAlias = Linear | GatedLinear


@dataclass(frozen=True)
class LayerShape:
    """The numbers of a layer; `num_outputs` counts columns of the result, `depth` those of the rows."""

    isa: ISA
    num_outputs: int
    depth: int
    gated: bool
    has_bias: bool
    has_residual: bool
    activation: str
    in_place: bool

    @property
    def num_panels(self) -> int:
        """Panels of the weight."""
        return num_panels(self.num_outputs * (2 if self.gated else 1))

    @property
    def label(self) -> str:
        """The beginning of its kernels' names."""
        return f"{'gated_' if self.gated else ''}linear_{self.num_outputs}x{self.depth}"

    def bias_and_residual(self, num_rows: Value) -> tuple[Buffer | None, Buffer | None]:
        """These arguments of a kernel, which come after the rows and the weight."""
        bias = argument("bias", (self.num_panels * PANEL,), "float32") if self.has_bias else None
        residual = argument("residual", (num_rows, self.num_outputs), "float32") if self.has_residual else None
        return bias, residual

    def epilogue(self, simd: Simd, num_rows: Value, bias: Buffer | None, residual: Buffer | None, dtype: str = "float32") -> Epilogue:
        """The layer's last step, with the result as the kernel's last argument unless it takes the residual's place."""
        out = residual if self.in_place else argument("out", (num_rows, self.num_outputs), dtype)
        return Epilogue(simd, self.num_outputs, self.gated, self.activation, bias, residual, out)


@dataclass(frozen=True)
class QuantizedShape(LayerShape):
    """The shape of a layer whose weight is codes, of so many blocks a row."""

    blocks: int
    codes: Codes

    @property
    def slices(self) -> int:
        """Slices of a row."""
        return -(-self.depth // SLICE)

    def weight(self) -> Buffer:
        """The packed weight, as a kernel's argument."""
        return argument("weight", (self.num_panels, self.blocks, self.codes.group_bytes), "uint8")


def layer_shape(isa: ISA, op: Layer, out: relax.TensorType) -> LayerShape:
    """The shape of a layer whose result has the type `out`."""
    gated, rows = isinstance(op, GatedLinear), shape_of(op.weight)[0]
    return LayerShape(
        isa=isa,
        num_outputs=rows // 2 if gated else rows,
        depth=int(op.x.ty.shape[1]),
        gated=gated,
        has_bias=op.bias is not None,
        has_residual=residual_of(op) is not None,
        activation=op.activation,
        in_place=adds_in_place(op, out),
    )


def quantized_shape(isa: ISA, op: Layer, codes: Codes, out: relax.TensorType) -> QuantizedShape:
    """The shape of a layer of codes whose result has the type `out`."""
    return QuantizedShape(**vars(layer_shape(isa, op, out)), blocks=shape_of(op.weight)[1] // codes.format.block_size, codes=codes)


def residual_of(op: Layer) -> relax.Expr | None:
    """The residual of a layer that has one."""
    return op.residual if isinstance(op, Linear) else None


def packed_bias(op: Layer, builder: relax.BlockBuilder) -> list[relax.Expr]:
    """The bias as panels have it; nothing for a layer without one."""
    pack = pack_gated_columns if isinstance(op, GatedLinear) else pack_columns
    return [] if op.bias is None else [pack(op.bias, builder)]
