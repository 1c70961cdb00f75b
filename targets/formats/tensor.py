"""A quantized weight in numpy, from a source's blocks or a scheme's encoder, before a target packs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight [N, K] as `targets.ops.Linear` takes it, K padded to whole groups.

    Attributes:
        format: what the numbers mean.
        codes: [N, K], one a byte, of the format's `code_dtype`.
        scales: [N, groups].
        mins: [N, groups], if the format has them, or its zeros.
        super_scales: [N, super-blocks], if the format has those: scales and mins are then codes, one a byte.
        super_mins: the same of mins.

    Raises:
        UnsupportedError: a code stands for NaN.
    """

    format: WeightFormat
    codes: Array
    scales: Array
    mins: Array | None = None
    super_scales: Array | None = None
    super_mins: Array | None = None

    @staticmethod
    def of(format: WeightFormat, codes: Array, *factors: Array) -> QuantizedTensor:
        """The weight whose tensors come in the order of `WeightFormat.factors`."""
        names = [name for name, _, _ in format.factors]
        return QuantizedTensor(format, codes, **dict(zip(names, factors, strict=True)))

    def __post_init__(self) -> None:
        num_rows, width = self.codes.shape
        assert str(self.codes.dtype) == self.format.code_dtype and width % self.format.block_size == 0
        wanted = {name: ((num_rows, width // size), dtype) for name, size, dtype in self.format.factors}
        assert {name: (factors.shape, str(factors.dtype)) for name, factors in self.factors.items()} == wanted
        not_numbers = [code for code, value in enumerate(TABLES.get(self.format.table, ())) if value != value]
        if not_numbers and np.isin(self.codes, not_numbers).any():
            raise UnsupportedError(f"a weight of {self.format.table} has NaN in it", field="weights", fix="check the file it comes from")

    @staticmethod
    def joined(parts: Iterable[QuantizedTensor], num_rows: int) -> QuantizedTensor:
        """Weights of one format and width, row under row, `num_rows` together; one of them at a time is in memory beside the result."""
        wholes: list[Array] = []
        begin = 0
        for part in parts:
            if not wholes:
                form, wholes = part.format, [np.empty((num_rows, each.shape[1]), each.dtype) for each in part.tensors]
            end = begin + len(part.codes)
            for whole, each in zip(wholes, part.tensors, strict=True):
                whole[begin:end] = each
            begin = end
        assert begin == num_rows > 0
        return QuantizedTensor.of(form, *wholes)

    @property
    def factors(self) -> dict[str, Array]:
        """The tensors beside the codes, by name, in the order of `WeightFormat.factors`."""
        named = {"scales": self.scales, "mins": self.mins, "super_scales": self.super_scales, "super_mins": self.super_mins}
        return {name: factors for name, factors in named.items() if factors is not None}

    @property
    def tensors(self) -> tuple[Array, ...]:
        """Codes, then `factors`."""
        return (self.codes, *self.factors.values())

    def in_order(self, rows: Array | None) -> QuantizedTensor:
        """The rows that are asked for; None is all of them."""
        return self if rows is None else QuantizedTensor.of(self.format, *(tensor[rows] for tensor in self.tensors))

    def in_format(self, format: WeightFormat) -> QuantizedTensor | None:
        """Exactly the same values in another format; None if that cannot hold them (`WeightFormat.fits`), or its type the mins."""
        if format == self.format:
            return self
        if not self.format.fits(format):
            return None
        if format.has_zeros:
            return QuantizedTensor(format, self.codes, self.scales, np.full(self.scales.shape, self.format.zero, format.code_dtype))
        if not format.has_mins:
            return QuantizedTensor(format, self.codes.view(np.int8) - np.int8(self.format.zero), self.scales)
        mins = -self.format.zero * self.scales.astype(np.float32)
        with np.errstate(over="ignore"):
            stored = mins.astype(self.scales.dtype)
        return QuantizedTensor(format, self.codes, self.scales, stored) if np.array_equal(stored.astype(np.float32), mins) else None

    def flat(self) -> QuantizedTensor:
        """The same codes without super-blocks: the products that scales and mins are, rounded to their type."""
        scaled = [(self.scales, self.super_scales), *([] if self.mins is None else [(self.mins, self.super_mins)])]
        with np.errstate(over="ignore"):
            factors = [self._scaled(*each).astype(self.format.scale_dtype) for each in scaled]
        return QuantizedTensor.of(self.format.flat, self.codes, *factors)

    def values(self) -> Array:
        """The values that the codes stand for: f32 [N, K]."""
        shape = (*self.scales.shape, self.format.group_size)
        table = self.format.table
        codes = np.array(TABLES[table], np.float32)[self.codes] if table else self.codes
        # A damaged scale may be infinite or NaN; what that does to a weight is not for numpy to warn about here.
        with np.errstate(invalid="ignore", over="ignore"):
            scales = self._scaled(self.scales, self.super_scales)[..., None]
            low = np.float32(0) if self.mins is None else self._scaled(self.mins, self.super_mins)[..., None]
            zero, least = (low, np.float32(0)) if self.format.has_zeros else (np.float32(self.format.zero), low)
            values = scales * (codes.reshape(shape).astype(np.float32) - zero)
            values += least
        return values.reshape(self.codes.shape)

    def _scaled(self, factors: Array, super_factors: Array | None) -> Array:
        """Scales or mins as float32 [N, groups]."""
        numbers: Array = factors.astype(np.float32)
        if super_factors is not None:
            numbers *= np.repeat(super_factors.astype(np.float32), self.format.super_size // self.format.group_size, axis=1)
        return numbers
