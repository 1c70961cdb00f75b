"""Weights of cases: the tensors that a matrix is stored as."""

from __future__ import annotations

from dataclasses import dataclass

from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES
from cupola.targets.testing.case import DTYPES, Input

GROUP = 32  # of quantized numbers, where nothing else is said


@dataclass(frozen=True)
class Weight:
    """How a matrix is stored: the type of its values, or the format of its codes."""

    dtype: str
    format: WeightFormat | None = None

    @property
    def has_halves(self) -> bool:
        """True if its values, or its scales, are floats of 16 bits as kernels for matrix units take them."""
        return self.dtype != "float32" and (self.format is None or self.format.scale_dtype == "float16")

    @staticmethod
    def of(name: str) -> Weight:
        """A key of DTYPES, or a weight format's name; groups of 32 need no word in those: w4, w4m, w8."""
        if name in DTYPES:
            return Weight(DTYPES[name])
        form = WeightFormat.parse(name if "g" in name else f"{name[:2]}g{GROUP}{name[2:]}")
        return Weight(form.code_dtype, form)

    def inputs(self, rows: int, depth: int) -> list[Input]:
        """The tensors of a matrix [rows, depth]."""
        if self.format is None:
            return [Input("weight", (rows, depth), self.dtype)]
        form, codes = self.format, (-128, 128) if self.dtype == "int8" else (0, 1 << self.format.bits)
        width = form.padded(depth)
        without = tuple(code for code, value in enumerate(TABLES.get(form.table, ())) if value != value)
        if form.has_zeros:
            scales, zeros = ((rows, width // size) for _, size, _ in form.factors)
            return [Input("weight", (rows, width), self.dtype, codes), Input("scales", scales, form.scale_dtype),
                    Input("mins", zeros, form.code_dtype, codes)]  # fmt: skip
        scale_codes = (0, 1 << form.scale_bits) if form.has_mins else (-(1 << form.scale_bits >> 1), 1 << form.scale_bits >> 1)
        return [Input("weight", (rows, width), self.dtype, codes, without)] + [
            Input(name, (rows, width // size), dtype, scale_codes if dtype.endswith("int8") else None) for name, size, dtype in form.factors
        ]
