"""Scales and mins of a packed weight as kernels read them: vectors of columns, and single numbers."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import ITEM_BYTES
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, name, splat
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.quantized_packing import SLICE, Codes


@dataclass(frozen=True)
class Factors:
    """The scales and mins of a packed weight, uint8 [panels, blocks, bytes of a block].

    Attributes:
        unit: what scales are multiplied by: `Weights.unit` where they meet what that unpacks.
    """

    simd: Simd
    codes: Codes
    weight: Buffer
    unit: float = 1.0

    def scale(self, panel: Value, at: Value, part: Value | int, column: Value, lanes: int = 0) -> Value:
        """The scales of columns from `column` on, of a part of slice `at`."""
        scale = self._factor("scales", panel, at, part, column, lanes or self.simd.lanes)
        return scale if self.unit == 1 else name(scale * splat(self.unit, lanes or self.simd.lanes))

    def min(self, panel: Value, at: Value, part: Value | int, column: Value, lanes: int = 0) -> Value | None:
        """The same of mins, if there are any."""
        return self._factor("mins", panel, at, part, column, lanes or self.simd.lanes) if self.codes.has_mins else None

    def zero(self, panel: Value, at: Value, part: Value | int, column: Value, lanes: int = 0) -> Value | None:
        """The same of zeros, if there are any."""
        return self._factor("mins", panel, at, part, column, lanes or self.simd.lanes) if self.codes.has_zeros else None

    def low(self, panel: Value, at: Value, part: Value | int, column: Value) -> Value | None:
        """The summand for each unit of a group's Σx: the min, or −zero · scale; None where there is neither."""
        zero = self.zero(panel, at, part, column)
        if zero is None:
            return self.min(panel, at, part, column)
        return name((splat(0.0, self.simd.lanes) - zero) * self.scale(panel, at, part, column))

    def of_group(self, panel: Value, group: Value, column: Value) -> tuple[Value, Value | None, Value | None]:
        """A column's scale, min and zero of a group of a row."""
        parts, slices = self.codes.parts, max(self.codes.format.group_size // SLICE, 1)
        at, part = (name(group // parts), name(group % parts)) if parts > 1 else (group * slices if slices > 1 else group, 0)
        scale, low, zero = (read(panel, at, part, column, 1) for read in (self.scale, self.min, self.zero))
        assert scale is not None
        return scale, low, zero

    def _factor(self, which: str, panel: Value, at: Value, part: Value | int, column: Value, lanes: int) -> Value:
        codes, form = self.codes, self.codes.format
        block, starts = codes.group_of(at), codes.factors
        item = ITEM_BYTES[form.scale_dtype]
        if not form.super_size:
            return self._float((panel, block, starts[which] + item * column), lanes)
        place = name(starts[which] + at % codes.slices * codes.factor_step(which) + part * PANEL + column)
        unit = self._float((panel, block, starts[f"super_{which}"] + item * column), lanes)
        return name(T.cast(self._code(which, (panel, block, place), lanes), f"float32x{lanes}" if lanes > 1 else "float32") * unit)

    def _float(self, index: tuple[Value, ...], lanes: int) -> Value:
        return self.simd.load_from_bytes(self.weight, index, self.codes.format.scale_dtype, lanes)

    def _code(self, which: str, index: tuple[Value, ...], lanes: int) -> Value:
        """Codes of scales or mins as int32."""
        *outer, start = index
        raw, of = self.weight[(*outer, T.ramp(start, 1, lanes) if lanes > 1 else start)], f"x{lanes}" if lanes > 1 else ""
        if not self.codes.has_mins:
            return T.cast(T.reinterpret(f"int8{of}", raw), f"int32{of}")
        wide = T.cast(raw, f"int32{of}")
        if not self.codes.in_nibbles:
            return wide
        number = (lambda value: T.broadcast(T.int32(value), lanes)) if lanes > 1 else T.int32
        return wide & number(15) if which == "scales" else wide >> number(4)
