"""A panel of quantized weights as register tiles take it: as it is stored, or some of its slices unpacked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, local, name
from cupola.targets.cpu.linear.factors import Factors
from cupola.targets.cpu.linear.int8_pairs import by_pairs
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.quantized_packing import QUADS, SLICE, Codes, first_byte

SLICE_BLOCK = 24  # slices of a panel that are unpacked at once: 24 KB, which stay in L1


class Panel(Protocol):
    """Where a tile has a panel's weights from."""

    def each_slice(self, start: Value | int, count: Value | int) -> AbstractContextManager[tuple[Value, Value]]: ...

    def quads(self, at: Value, column: Value) -> list[Value]: ...

    def scale(self, at: Value, column: Value, part: int) -> Value: ...

    def min(self, at: Value, column: Value, part: int) -> Value | None: ...


@dataclass(frozen=True)
class PackedPanel:
    """The weights as they are stored."""

    simd: Simd
    codes: Codes
    weights: Weights
    weight: Buffer
    panel: Value

    @contextmanager
    def each_slice(self, start: Value | int, count: Value | int) -> Iterator[tuple[Value, Value]]:
        """A loop over slices from `start` on: twice its place in the panel. It goes over super-blocks, with one of which it begins, and
        those of each: so a slice's place in one is no division."""
        each = self.codes.slices
        if not self.codes.format.super_size:
            with T.serial(count) as at:
                yield (start + at, start + at)
            return
        with T.serial(-(-count // each)) as block:
            whole = isinstance(count, int) and count % each == 0
            with T.serial(each if whole else T.min(T.int64(each), T.int64(count) - block * each)) as at:
                place = (start // each + block) * each + at
                yield (place, place)

    def quads(self, at: Value, column: Value) -> list[Value]:
        return self.weights.unpack(self.weight, self.panel, at, column)

    def scale(self, at: Value, column: Value, part: int) -> Value:
        return self.factors.scale(self.panel, at, part, column)

    def min(self, at: Value, column: Value, part: int) -> Value | None:
        return self.factors.low(self.panel, at, part, column)

    @property
    def factors(self) -> Factors:
        return Factors(self.simd, self.codes, self.weight, self.weights.unit)


@dataclass(frozen=True)
class UnpackedPanel:
    """Some of a panel's slices as bytes and float32: int8 [slices · 1024], float32 [parts of slices, 32]: each with its group's scales.

    `in_pairs` a vector's place has two columns of two quads: of quads 2p and 2p + 1 the first has the first half of their columns.
    """

    simd: Simd
    parts: int
    numbers: Buffer
    scales: Buffer
    mins: Buffer | None
    in_pairs: bool

    @staticmethod
    def allocate(simd: Simd, codes: Codes, in_pairs: bool = False) -> UnpackedPanel:
        parts = codes.parts
        mins = local((SLICE_BLOCK * parts, PANEL)) if codes.has_mins or codes.has_zeros else None
        numbers, scales = local(SLICE_BLOCK * SLICE * PANEL, "int8"), local((SLICE_BLOCK * parts, PANEL))
        return UnpackedPanel(simd, parts, numbers, scales, mins, in_pairs)

    def fill(self, packed: PackedPanel, at: Value, to: Value) -> None:
        """Takes in slice `at` of a packed panel as number `to`."""
        with T.serial(PANEL // self.simd.lanes) as vector:
            column = name(vector * self.simd.lanes)
            quads = packed.quads(at, column)
            for quad, vector in enumerate(by_pairs(quads) if self.in_pairs else quads):
                T.buffer_store(self.numbers, vector, [T.ramp(self.place(to, quad, column), 1, 4 * self.simd.lanes)])
            for part in range(self.parts):
                self.simd.store(self.scales, packed.scale(at, column, part), (self.row(to, part), column))
                if self.mins is not None:
                    self.simd.store(self.mins, packed.min(at, column, part), (self.row(to, part), column))

    @contextmanager
    def each_slice(self, start: Value | int, count: Value | int) -> Iterator[tuple[Value, Value]]:
        """A loop over the unpacked slices, of which the first is number `start` of the panel: that of each, and its place here."""
        with T.serial(count) as at:
            yield (start + at, at)

    def place(self, at: Value, quad: int, column: Value) -> Value:
        return at * SLICE * PANEL + first_byte(quad, column)

    def quads(self, at: Value, column: Value) -> list[Value]:
        lanes = 4 * self.simd.lanes
        return [name(self.numbers[T.ramp(self.place(at, quad, column), 1, lanes)]) for quad in range(QUADS)]

    def row(self, at: Value, part: int) -> Value:
        return at if self.parts == 1 else name(at * self.parts + part)

    def scale(self, at: Value, column: Value, part: int) -> Value:
        return self.simd.load(self.scales, (self.row(at, part), column))

    def min(self, at: Value, column: Value, part: int) -> Value | None:
        return None if self.mins is None else self.simd.load(self.mins, (self.row(at, part), column))
