"""A quantized weight in numpy, from a source's blocks or a scheme's encoder, before a target packs it."""

from __future__ import annotations

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
        mins: [N, groups], if the format has them.

    Raises:
        UnsupportedError: a code stands for NaN.
    """

    format: WeightFormat
    codes: Array
    scales: Array
    mins: Array | None = None

    def __post_init__(self) -> None:
        num_rows, width = self.codes.shape
        assert str(self.codes.dtype) == self.format.code_dtype and width % self.format.group_size == 0
        assert (self.mins is not None) == self.format.has_mins
        for factors in self.tensors[1:]:
            assert factors.shape == (num_rows, width // self.format.group_size) and str(factors.dtype) == self.format.scale_dtype
        not_numbers = [code for code, value in enumerate(TABLES.get(self.format.table, ())) if value != value]
        if not_numbers and np.isin(self.codes, not_numbers).any():
            raise UnsupportedError(f"a weight of {self.format.table} has NaN in it", field="weights", fix="check the file it comes from")

    @property
    def tensors(self) -> tuple[Array, ...]:
        """Codes and scales, and mins if there are any."""
        return (self.codes, self.scales) if self.mins is None else (self.codes, self.scales, self.mins)

    def in_order(self, rows: Array | None) -> QuantizedTensor:
        """The rows that are asked for; None is all of them."""
        return self if rows is None else QuantizedTensor(self.format, *(tensor[rows] for tensor in self.tensors))

    def in_format(self, format: WeightFormat) -> QuantizedTensor | None:
        """Exactly the same values in another format; None if that cannot hold them (`WeightFormat.fits`), or its type the mins."""
        if format == self.format:
            return self
        if not self.format.fits(format):
            return None
        if not format.has_mins:
            return QuantizedTensor(format, self.codes.view(np.int8) - np.int8(self.format.zero), self.scales)
        mins = -self.format.zero * self.scales.astype(np.float32)
        with np.errstate(over="ignore"):
            stored = mins.astype(self.scales.dtype)
        return QuantizedTensor(format, self.codes, self.scales, stored) if np.array_equal(stored.astype(np.float32), mins) else None

    def values(self) -> Array:
        """The values that the codes stand for: f32 [N, K]."""
        shape = (*self.scales.shape, self.format.group_size)
        table = self.format.table
        codes = np.array(TABLES[table], np.float32)[self.codes] if table else self.codes
        values = self.scales.astype(np.float32)[..., None] * (codes.reshape(shape).astype(np.float32) - np.float32(self.format.zero))
        values += 0 if self.mins is None else self.mins.astype(np.float32)[..., None]
        return values.reshape(self.codes.shape)
