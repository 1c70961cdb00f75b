"""Register tiles of integer dot products: some rows of int8 activations times some slices of a panel of quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.simd import ROUND, Buffer, Register, Simd, Value, name, splat
from cupola.targets.cpu.linear.int8_rows import Int8Rows
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.panels import Panel
from cupola.targets.cpu.linear.quantized_packing import QUADS
from cupola.targets.cpu.linear.shape import QuantizedShape


@dataclass(frozen=True)
class Int8Tiles:
    """Emits the tiles."""

    kernel: QuantizedShape
    simd: Simd
    weights: Weights

    @property
    def reads_as_floats(self) -> bool:
        """True if sums are read as floats, of which 1.5 · 2^23 is to be taken off. A scale times that must be exact: not one of float32.
        Where a dot product takes more than one instruction, the constant would cost a register that those need."""
        return self.kernel.isa.int8_dot == "vpdpbusd" and self.kernel.codes.format.scale_dtype != "float32"

    def add(self, total: Register, exact: Value, low: Value | None, rows: Int8Rows, place: Value, part: int) -> None:
        """total += exact · scale of x + low · scale · Σq of x, for a vector of columns and a part of a place in the rows."""
        lanes = self.simd.lanes
        total.set(self.simd.fma(exact, splat(rows.scale(place), lanes), total.get()))
        if low is not None and (x_sum := rows.sum(place, part)) is not None:
            total.set(self.simd.fma(low, splat(x_sum, lanes), total.get()))

    def tile(
        self, rows: Int8Rows, row: Value, size: int, panel: Panel, start: Value, num_slices: Value | int,
        products: Buffer, r: Value, fresh: bool, beside: Callable[[Value], None],
    ) -> None:  # fmt: skip
        """Adds the products of `size` rows and a panel's slices from `start` on to rows `r`… of `products`, or puts them there; `beside`
        each slice something else is done."""
        lanes, vectors = self.simd.lanes, self.vectors_beside(size)
        with T.serial(PANEL // lanes // vectors) as part:
            columns = [name((part * vectors + vector) * lanes) for vector in range(vectors)]
            sums = [[self.first_sum(products, r + i, column, fresh) for column in columns] for i in range(size)]
            with panel.each_slice(start, num_slices) as (of_rows, at):
                beside(at)
                self.add_slice(rows, row, of_rows, panel, at, columns, sums)
            for i in range(size):
                for column, total in zip(columns, sums[i], strict=True):
                    self.simd.store(products, total.get(), (r + i, column))

    def first_sum(self, products: Buffer, r: Value, column: Value, fresh: bool) -> Register:
        total = Register(self.simd.lanes, 0.0 if fresh else None)
        if not fresh:
            total.set(self.simd.load(products, (r, column)))
        return total

    def add_slice(
        self, rows: Int8Rows, row: Value, of_rows: Value, panel: Panel, at: Value, columns: list[Value], sums: list[list[Register]]
    ) -> None:
        """Adds one slice's products: `of_rows` is its place in the rows, `at` that in the panel."""
        places = [rows.place(row + i, of_rows) for i in range(len(sums))]
        lanes, parts = self.simd.lanes, self.kernel.codes.parts
        weights: list[list[Value]] = []
        for part in range(parts):
            starts = [rows.start(place, part) for place in places]
            integers = [[Register(lanes, start, "int32") for _ in columns] for start in starts]
            weights = weights or [panel.quads(at, column) for column in columns]
            for quad in range(part * QUADS // parts, (part + 1) * QUADS // parts):
                for i, totals in enumerate(integers):
                    x = rows.quad(places[i], quad)
                    for total, vectors in zip(totals, weights, strict=True):
                        total.set(self.weights.dot(total.get(), vectors[quad], x))
            for vector, column in enumerate(columns):
                scaled, low = self.scaled(panel.scale(at, column, part)), panel.min(at, column, part)
                for i, totals in enumerate(integers):
                    self.add(sums[i][vector], scaled(totals[vector].get()), low, rows, places[i], part)

    def scaled(self, scale: Value) -> Callable[[Value], Value]:
        """Scales sums of products, rounding once."""
        lanes = self.simd.lanes
        if not self.reads_as_floats:
            return lambda total: name(T.cast(total, f"float32x{lanes}") * scale)
        taken_off = name(scale * splat(-ROUND, lanes))
        return lambda total: name(self.simd.fma(T.reinterpret(f"float32x{lanes}", total), scale, taken_off))

    def vectors_beside(self, rows: int) -> int:
        """Vectors of a panel whose sums of `rows` rows fit the registers: as integers all of them; as floats all of them or, where a dot
        product is a single instruction and a slice touches them once, every second. A slice's second half waits for its first one."""
        available, registers, parts = PANEL // self.simd.lanes, self.kernel.isa.num_registers, self.kernel.codes.parts
        floats = rows // 2 if self.kernel.isa.int8_dot == "vpdpbusd" and parts == 1 else rows
        waiting = QUADS - QUADS // parts
        others = 2 if self.kernel.isa.int8_lanes == 1 else 2 + rows  # words that are read at once
        return max(n for n in (1, 2, 4) if n == 1 or (n <= available and (rows + 1 + floats + waiting) * n + others <= registers))
