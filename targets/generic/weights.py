"""Weights as they are stored: floats, or codes with scales and perhaps mins, which kernels read a number at a time."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value, argument, e4m3_to_f32, name
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES
from cupola.targets.generic.loops import load

_DTYPES = ("float32", "float16", "bfloat16", "int8", "uint8")


@dataclass(frozen=True)
class StoredKernel:
    """How a matrix is stored, for a kernel that reads it.

    Attributes:
        shape: of what is stored: rows of codes are padded to whole groups.
        dtype: of the same.
        format: of codes; "": of floats.
    """

    shape: tuple[int, int]
    dtype: str
    format: str = ""

    @property
    def label(self) -> str:
        """For the names of kernels."""
        return (self.format or self.dtype).replace("-", "_")

    @property
    def weight_format(self) -> WeightFormat | None:
        """The format of codes; None of floats."""
        return WeightFormat.parse(self.format) if self.format else None

    def arguments(self) -> StoredArguments:
        """The arguments of a kernel: `weight`, and what stands beside codes."""
        form, (rows, columns) = self.weight_format, self.shape
        weight, factors = argument("weight", self.shape, self.dtype), () if form is None else form.factors
        return StoredArguments(form, weight, **{label: argument(label, (rows, columns // size), dtype) for label, size, dtype in factors})


@dataclass(frozen=True)
class StoredArguments:
    """A stored matrix within a kernel."""

    format: WeightFormat | None
    weight: Buffer
    scales: Buffer | None = None
    mins: Buffer | None = None
    super_scales: Buffer | None = None
    super_mins: Buffer | None = None

    def value(self, row: Value, column: Value) -> Value:
        """An element as float32."""
        if self.format is None or self.scales is None:
            return load(self.weight, row, column)
        low, product = self.min(row, column), self.scale(row, column) * self.code(row, column)
        return product if low is None else product + low

    def scale(self, row: Value, column: Value) -> Value:
        """The scale of an element's group, as float32. Of codes only."""
        assert self.scales is not None
        return self._factor(self.scales, self.super_scales, row, column)

    def min(self, row: Value, column: Value) -> Value | None:
        """The min of an element's group, if it has one."""
        return None if self.mins is None or self.has_zeros else self._factor(self.mins, self.super_mins, row, column)

    @property
    def has_zeros(self) -> bool:
        """True if groups have zeros."""
        return self.format is not None and self.format.has_zeros

    def zero(self, row: Value, column: Value) -> Value:
        """The code that stands for 0 in an element's group, as int32."""
        assert self.format is not None
        if self.mins is None or not self.has_zeros:
            return T.int32(self.format.zero)
        return T.cast(self.mins[row, column // self.format.group_size], "int32")

    def _factor(self, factors: Buffer, super_factors: Buffer | None, row: Value, column: Value) -> Value:
        assert self.format is not None
        factor = load(factors, row, column // self.format.group_size)
        return factor if super_factors is None else load(super_factors, row, column // self.format.super_size) * factor

    def code(self, row: Value, column: Value) -> Value:
        """The number that a scale multiplies, as float32."""
        assert self.format is not None
        code = self.weight[row, column]
        if not self.format.table:
            return T.cast(T.cast(code, "int32") - self.zero(row, column), "float32")
        return name(table_entry(self.format.table, name(T.cast(code, "int32"))))


def table_entry(table: str, code: Value) -> Value:
    """The entry of a code, an int32, in a table, as float32."""
    if table == "e4m3":
        return e4m3_to_f32(code, 1)
    value = T.float32(0)
    for i, entry in enumerate(TABLES[table]):
        value = T.Select(code == T.int32(i), T.float32(entry), value)
    return value


@dataclass(frozen=True)
class Stored:
    """A stored matrix in Relax: what a kernel must know of it, and the tensors that it is given."""

    kernel: StoredKernel
    tensors: tuple[relax.Expr, ...]

    @staticmethod
    def of(
        weight: relax.Expr, scales: relax.Expr | None = None, mins: relax.Expr | None = None, form: str = "",
        super_scales: relax.Expr | None = None, super_mins: relax.Expr | None = None,
    ) -> Stored | None:  # fmt: skip
        """The matrix of an operation's fields; None if its shape is not known, or its type is none of a weight's."""
        sizes, dtype = list(weight.ty.shape), str(weight.ty.dtype)
        if len(sizes) != 2 or not all(isinstance(size, tvm.tirx.IntImm) for size in sizes) or dtype not in _DTYPES:
            return None
        rows, columns = map(int, sizes)
        given = (weight, scales, mins, super_scales, super_mins)
        return Stored(StoredKernel((rows, columns), dtype, form), tuple(t for t in given if t is not None))
