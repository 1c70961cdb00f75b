"""The epilogue of a matrix product: bias, activation, gate, residual; row by row, from a scratch tile to the output."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, pieces
from cupola.targets.cpu.linear.packing import PANEL, num_panels
from cupola.targets.ops import GatedLinear, Linear


def adds_in_place(op: Linear | GatedLinear, out: relax.TensorType) -> bool:
    """True if the result takes the residual's place; its rows are then written once each."""
    return isinstance(op, Linear) and op.residual is not None and bool(op.in_place) and str(out.dtype) == "float32"


def call_layer(func: tvm.ir.GlobalVar, arguments: list[relax.Expr], out: relax.TensorType, place: relax.Expr | None) -> relax.Expr:
    """The call of a layer's kernel, whose result takes the place of one of the arguments or, of none, is a tensor of its own."""
    if place is None:
        return relax.op.call_tir(func, relax.Tuple(arguments), out_ty=out)
    return relax.op.call_tir_inplace(func, relax.Tuple(arguments), [arguments.index(place)], out)


@dataclass(frozen=True)
class Epilogue:
    """`activation(products + bias) [· (products + bias)] [+ residual]`; `num_outputs` counts columns of `out`.

    A panel's products are 32 columns side by side; those of a gated product are 16 gates and the 16 ups that they multiply.
    """

    simd: Simd
    num_outputs: int
    gated: bool
    activation: str
    bias: Buffer | None
    residual: Buffer | None
    out: Buffer

    @property
    def panel_outputs(self) -> int:
        """Columns of `out` that a panel gives."""
        return PANEL // 2 if self.gated else PANEL

    @property
    def num_panels(self) -> int:
        """Panels of the weight."""
        return num_panels(self.num_outputs * (2 if self.gated else 1))

    def finish(self, panel: Value, row: Value, r: Value, products: Buffer) -> None:
        """Writes row `row` of a panel's columns from row `r` of `products`. The last panel may be narrower."""
        last, width = self.num_panels - 1, self.panel_outputs
        narrow = self.num_outputs - last * width
        if narrow == width:
            self._columns(panel, row, r, products, width)
            return
        with T.If(panel < last):
            with T.Then():
                self._columns(panel, row, r, products, width)
            with T.Else():
                self._columns(panel, row, r, products, narrow)

    def prefetch(self, panel: Value, row: Value) -> None:
        """Takes what `finish` will write of a row from other cores. Columns past the last one are nobody's, or the next row's."""
        for column in range(0, self.panel_outputs, self.simd.elements_of_line(self.out)):
            self.simd.prefetch(self.out, (*self.place(row), panel * self.panel_outputs + column), write=True)

    def place(self, row: Value) -> tuple[Value, ...]:
        """Where a row stands in `out`."""
        return (row,)

    def _columns(self, panel: Value, row: Value, r: Value, products: Buffer, width: int) -> None:
        simd = self.simd
        for start, lanes in pieces(width, simd.lanes):
            value = self._biased(products, panel, r, start, lanes)
            value = simd.activation(self.activation, value, for_bf16=self.out.dtype == "bfloat16")
            if self.gated:
                value = value * self._biased(products, panel, r, start + PANEL // 2, lanes)
            index = (*self.place(row), panel * self.panel_outputs + start)
            if self.residual is not None:
                value = value + simd.load(self.residual, index, lanes)
            simd.store(self.out, value, index)

    def _biased(self, products: Buffer, panel: Value, r: Value, start: int, lanes: int) -> Value:
        value = self.simd.load(products, (r, start), lanes)
        return value if self.bias is None else value + self.simd.load(self.bias, (panel * PANEL + start,), lanes)
