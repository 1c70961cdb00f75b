"""Matrix products of quantized weights and activations rounded to int8: integer dot products, a scale a group on both sides.

Activations are quantized in groups of 32, the slices that packed weights come in; a group of weights is one slice or several.

Rows are rounded once, by all threads, or a single one by each. Up to FEW of them (decoding) then multiply the packed weights
as they come from memory. With more, a task takes a panel of 32 columns and a block of rows, unpacks the panel's weights to
bytes, a block of slices at a time, and walks the rows in register tiles; where the machine has tiles of its own, those of
bfloat16 take over (`tile_product`).

An output is a sum in ascending order over slices, or over the groups of 16 that a slice may have two of, `sum += (scale_w · Σ q_w·q_x) ·
scale_x`, whose inner sums are exact integers.
So its bits depend neither on the path nor on the tile nor on the rows beside it, unless bfloat16 took over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import with_cost
from cupola.targets.cpu.emit.amx import MANY
from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.loops import Claims, Threads, in_tiles, parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import CACHE_LINE, Buffer, Register, Simd, Value, argument, local, name, prim_func, splat
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.amx import TileProduct
from cupola.targets.cpu.linear.epilogue import Epilogue, call_layer
from cupola.targets.cpu.linear.factors import Factors
from cupola.targets.cpu.linear.int8_rows import Int8Rows, RowSource
from cupola.targets.cpu.linear.packing import AHEAD, PANEL, is_static
from cupola.targets.cpu.linear.quantized_packing import QUADS, SLICE, codes_of, first_byte, pack_groups
from cupola.targets.cpu.linear.shape import QuantizedShape, packed_bias, quantized_shape, residual_of
from cupola.targets.ops import GatedLinear, Linear

FEW = MANY - 1  # rows
ROW_BLOCK = 96  # rows of a task: their activations stay in L2 while panels stream by
SLICE_BLOCK = 24  # slices of a panel that are unpacked at once: 24 KB, which stay in L1
FIRST = 8192  # bytes of weights that are asked for before anything else


@dataclass(frozen=True)
class Int8Shape(QuantizedShape):
    """The parameters of a kernel."""

    has_norm: bool
    epsilon: float
    x_dtype: str
    out_dtype: str


def lower_int8_linear(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Linear` and `GatedLinear` with quantized weights, whose activations are to be rounded."""
    op = Linear.match(call) or GatedLinear.match(call)
    codes = None if op is None else codes_of(op)
    if op is None or codes is None or not Weights.can_unpack(isa, codes):
        return None
    if op.quantize_x != SLICE or op.x.ty.ndim != 2 or not is_static(op.weight):
        return None
    residual, shape = residual_of(op), quantized_shape(isa, op, codes, call.ty)
    x_dtype, out_dtype = str(op.x.ty.dtype), str(call.ty.dtype)
    kernel = Int8Shape(**vars(shape), has_norm=op.norm is not None, epsilon=op.epsilon, x_dtype=x_dtype, out_dtype=out_dtype)
    arguments = [op.x, pack_groups(op, codes, builder), *packed_bias(op, builder)]
    arguments += [extra for extra in (residual, op.norm) if extra is not None]
    function = builder.add_func(_build(kernel), f"{kernel.label}_{codes.label}a8")
    return call_layer(function, arguments, call.ty, residual if kernel.in_place else None)


@cache
def _build(kernel: Int8Shape) -> tvm.tirx.PrimFunc:
    k = kernel

    def body() -> None:
        num_rows = T.int64()
        x = argument("x", (num_rows, k.depth), k.x_dtype)
        weight = k.weight()
        bias, residual = k.bias_and_residual(num_rows)
        norm = argument("norm", (k.depth,), "float32") if k.has_norm else None
        simd = Simd(k.isa)
        epilogue = k.epilogue(simd, num_rows, bias, residual, k.out_dtype)
        source = RowSource(simd, x, k.depth, norm, k.epsilon)
        product = Int8Product(k, simd, weight, epilogue, source, Weights(k.isa, k.codes), num_rows)
        with T.If(num_rows <= T.int64(FEW)):
            with T.Then():
                product.few()
            with T.Else():
                if k.isa.bf16_tiles:
                    TileProduct(simd, weight, k.codes, k.slices, source, epilogue, num_rows).run()
                else:
                    product.many()

    return with_cost(prim_func(body), KernelCost("bfloat16" if k.isa.bf16_tiles else "int8"))


@dataclass(frozen=True)
class Int8Product:
    """Emits the loops."""

    kernel: Int8Shape
    simd: Simd
    weight: Buffer
    epilogue: Epilogue
    source: RowSource
    weights: Weights
    num_rows: Value

    @property
    def stream_slices(self) -> int:
        """Slices of a panel in memory: whole groups."""
        return self.kernel.blocks * self.kernel.codes.slices

    def allocate(self, num_rows: Value | int) -> Int8Rows:
        codes = self.kernel.codes
        return Int8Rows.allocate(num_rows, self.kernel.slices, self.weights.zero, codes.has_mins or codes.has_zeros, codes.parts)

    def few(self) -> None:
        """One region: the rows, then panels. One row is rounded by every thread for itself: to wait for another core takes longer."""
        count = T.int64(self.kernel.num_panels)
        threads = Threads.of_region()
        claims = Claims.allocate(threads, count)
        with T.If(self.num_rows == T.int64(1)):
            with T.Then():
                self.one(claims)
            with T.Else():
                self.several(claims)

    def one(self, claims: Claims) -> None:
        """One row."""
        known, threads = replace(self, num_rows=T.int64(1)), claims.threads
        with parallel_region(), threads.each(barrier=False) as thread:
            first = self.first_stream(claims, thread)
            self.fetch_first(first, FIRST)
            rows, num_asked = self.allocate(1), FIRST // self.kernel.codes.stride
            rows.fill(self.source, T.int64(0), lambda at: self.fetch(first, at + num_asked))  # memory is busy meanwhile
            with claims.each(thread) as panel:
                known.panel(rows, panel, self.stream(panel, claims.left_of(thread, panel)), (1,))

    def several(self, claims: Claims) -> None:
        """One region: the rows, a barrier, then panels."""
        rows, threads = self.allocate(FEW), claims.threads
        with parallel_region():
            with threads.each(barrier=False) as thread:
                self.fetch_first(self.first_stream(claims, thread), AHEAD)
            with shared_loop(self.num_rows) as row:
                rows.fill(self.source, row)
            with threads.each(barrier=False) as thread, claims.each(thread) as panel:
                self.panel(rows, panel, self.stream(panel, claims.left_of(thread, panel)), (self.kernel.isa.int8_row_tile, 4, 2, 1))

    def panel(self, rows: Int8Rows, panel: Value, stream: Stream, sizes: tuple[int, ...]) -> None:
        """All rows of a panel, whose weights come from memory as the first ones of a stream, in tiles of `sizes`."""
        with T.serial(self.num_rows) as row:
            self.epilogue.prefetch(panel, row)
        products = local((self.kernel.isa.int8_row_tile, PANEL))
        packed, slices = _Packed(self.kernel, self.simd, self.weights, self.weight, panel), self.kernel.slices

        def tile(row: Value, count: int) -> None:
            self.tile(rows, row, count, packed, T.int64(0), slices, products, T.int64(0), True, stream)
            with T.serial(count) as r:
                self.epilogue.finish(panel, row + r, r, products)

        in_tiles(self.num_rows, sizes, tile)

    def stream(self, panel: Value, num_left: Value) -> Stream:
        """From a panel on, with which `num_left` are left to the thread."""
        return Stream(panel, name(num_left * self.stream_slices))

    def first_stream(self, claims: Claims, thread: Value) -> Stream:
        """A thread's whole share."""
        panel = name(claims.threads.first(thread, claims.count))
        return self.stream(panel, claims.left_of(thread, panel))

    def fetch_first(self, stream: Stream, num_bytes: int) -> None:
        """Asks for the beginning of a stream, which nothing was ahead of."""
        with T.serial(num_bytes // self.kernel.codes.stride) as at:
            self.fetch(stream, at)

    def fetch(self, stream: Stream, at: Value | int) -> None:
        """Asks for the weights of a slice of a stream, if it has so many. What the hardware foresees ends with a page."""
        codes = self.kernel.codes
        with T.If(at < stream.num_left), T.Then():
            panel, at = stream.place(at)
            group, first = codes.place(at, codes.stride)
            for byte in range(0, codes.stride, CACHE_LINE):
                self.simd.prefetch(self.weight, (panel, group, byte + first), near=2)  # past the end it is one of the next panel

    def fetch_ahead(self, stream: Stream, at: Value, first: Value, last: Value) -> None:
        """Asks for the weights `AHEAD` bytes after a slice, if it is one of a tile's share. All tiles of rows together ask for all."""
        with T.If(T.And(at >= first, at < last)), T.Then():
            self.fetch(stream, name(at + AHEAD // self.kernel.codes.stride))

    def many(self) -> None:
        """One region: all rows, a barrier, then panels by blocks of rows."""
        panels = self.kernel.num_panels
        rows = self.allocate(self.num_rows)
        with parallel_region():
            with shared_loop(self.num_rows) as row:
                rows.fill(self.source, row)
            with shared_loop((self.num_rows + ROW_BLOCK - 1) // ROW_BLOCK * panels, barrier=False) as task:
                first = name(task // panels * ROW_BLOCK)
                self.block(rows, name(task % panels), first, name(T.min(self.num_rows - first, T.int64(ROW_BLOCK))))

    def block(self, rows: Int8Rows, panel: Value, first: Value, count: Value) -> None:
        """`count` rows from `first` on of one panel, its slices in blocks."""
        slices = self.kernel.slices
        products, unpacked = local((ROW_BLOCK, PANEL)), _Unpacked.allocate(self.kernel, self.simd)
        packed = _Packed(self.kernel, self.simd, self.weights, self.weight, panel)
        with T.serial(count) as r:
            for start in range(0, PANEL, self.simd.lanes):
                self.simd.store(products, splat(0.0, self.simd.lanes), (r, start))
        with T.serial(-(-slices // SLICE_BLOCK)) as index:
            start = name(index * SLICE_BLOCK)
            num_slices = name(T.min(T.int64(SLICE_BLOCK), T.int64(slices) - start))
            with T.serial(num_slices) as at:
                unpacked.fill(packed, name(start + at), at)

            def tile(r: Value, size: int) -> None:
                self.tile(rows, name(first + r), size, unpacked, start, num_slices, products, r, fresh=False)

            in_tiles(count, (self.kernel.isa.int8_row_tile, 4, 2, 1), tile)
        with T.serial(count) as r:
            self.epilogue.finish(panel, first + r, r, products)

    def add(self, total: Register, exact: Value, low: Value | None, rows: Int8Rows, place: Value, part: int) -> None:
        """total += exact · scale of x + low · scale · Σq of x, for a vector of columns and a part of a place in the rows."""
        lanes = self.simd.lanes
        total.set(self.simd.fma(exact, splat(rows.scale(place), lanes), total.get()))
        if low is not None and (x_sum := rows.sum(place, part)) is not None:
            total.set(self.simd.fma(low, splat(x_sum, lanes), total.get()))

    def tile(
        self, rows: Int8Rows, row: Value, size: int, panel: _Panel, start: Value, num_slices: Value | int,
        products: Buffer, r: Value, fresh: bool, stream: Stream | None = None,
    ) -> None:  # fmt: skip
        """Adds the products of `size` rows and a panel's slices from `start` on to rows `r`… of `products`, or puts them there; `stream`
        is where the panel comes from memory."""
        lanes, vectors = self.simd.lanes, self.vectors_beside(size)
        share = [] if stream is None else [name(end * num_slices // self.num_rows) for end in (row, row + size)]
        with T.serial(PANEL // lanes // vectors) as part:
            columns = [name((part * vectors + vector) * lanes) for vector in range(vectors)]
            sums = [[self.first_sum(products, r + i, column, fresh) for column in columns] for i in range(size)]
            with T.serial(num_slices) as at:
                if stream is not None:
                    self.fetch_ahead(stream, at, *share)
                self.add_slice(rows, row, name(start + at), panel, at, columns, sums)
            for i in range(size):
                for column, total in zip(columns, sums[i], strict=True):
                    self.simd.store(products, total.get(), (r + i, column))

    def first_sum(self, products: Buffer, r: Value, column: Value, fresh: bool) -> Register:
        total = Register(self.simd.lanes, 0.0 if fresh else None)
        if not fresh:
            total.set(self.simd.load(products, (r, column)))
        return total

    def add_slice(
        self, rows: Int8Rows, row: Value, of_rows: Value, panel: _Panel, at: Value, columns: list[Value], sums: list[list[Register]]
    ) -> None:
        """Adds one slice's products: `of_rows` is its place in the rows, `at` that in the panel."""
        lanes = self.simd.lanes
        places = [rows.place(row + i, of_rows) for i in range(len(sums))]
        weights: list[list[Value]] = []
        parts = self.kernel.codes.parts
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
                scale, low = panel.scale(at, column, part), panel.min(at, column, part)
                for i, totals in enumerate(integers):
                    exact = name(T.cast(totals[vector].get(), f"float32x{lanes}") * scale)
                    self.add(sums[i][vector], exact, low, rows, places[i], part)

    def vectors_beside(self, rows: int) -> int:
        """Vectors of a panel whose sums of `rows` rows, as integers and as floats, fit the registers."""
        available, registers = PANEL // self.simd.lanes, self.kernel.isa.num_registers
        return max(size for size in (1, 2, 4) if size == 1 or (size <= available and (2 * rows + 1) * size + 2 <= registers))


@dataclass(frozen=True)
class Stream:
    """A panel that comes from memory, and how many slices, its own with them, a thread has still to read from there on."""

    panel: Value
    num_left: Value

    def place(self, at: Value | int) -> tuple[Value, Value | int]:
        """Slice `at` of the stream, as one of the panel and those that follow it in memory."""
        return self.panel, at


class _Panel(Protocol):
    """Where a tile has a panel's weights from."""

    def quads(self, at: Value, column: Value) -> list[Value]: ...

    def scale(self, at: Value, column: Value, part: int) -> Value: ...

    def min(self, at: Value, column: Value, part: int) -> Value | None: ...


@dataclass(frozen=True)
class _Packed:
    """The weights as they are stored."""

    kernel: Int8Shape
    simd: Simd
    weights: Weights
    weight: Buffer
    panel: Value

    def quads(self, at: Value, column: Value) -> list[Value]:
        return self.weights.unpack(self.weight, self.panel, at, column)

    def scale(self, at: Value, column: Value, part: int) -> Value:
        return self.factors.scale(self.panel, at, part, column)

    def min(self, at: Value, column: Value, part: int) -> Value | None:
        return self.factors.low(self.panel, at, part, column)

    @property
    def factors(self) -> Factors:
        return Factors(self.simd, self.kernel.codes, self.weight, self.weights.unit)


@dataclass(frozen=True)
class _Unpacked:
    """Some of a panel's slices as bytes and float32: int8 [slices · 1024], float32 [parts of slices, 32]: each with its group's scales."""

    simd: Simd
    parts: int
    codes: Buffer
    scales: Buffer
    mins: Buffer | None

    @staticmethod
    def allocate(kernel: Int8Shape, simd: Simd) -> _Unpacked:
        parts = kernel.codes.parts
        mins = local((SLICE_BLOCK * parts, PANEL)) if kernel.codes.has_mins or kernel.codes.has_zeros else None
        return _Unpacked(simd, parts, local(SLICE_BLOCK * SLICE * PANEL, "int8"), local((SLICE_BLOCK * parts, PANEL)), mins)

    def fill(self, packed: _Packed, at: Value, to: Value) -> None:
        """Takes in slice `at` of a packed panel as number `to`."""
        with T.serial(PANEL // self.simd.lanes) as vector:
            column = name(vector * self.simd.lanes)
            for quad, vector in enumerate(packed.quads(at, column)):
                T.buffer_store(self.codes, vector, [T.ramp(self.place(to, quad, column), 1, 4 * self.simd.lanes)])
            for part in range(self.parts):
                self.simd.store(self.scales, packed.scale(at, column, part), (self.row(to, part), column))
                if self.mins is not None:
                    self.simd.store(self.mins, packed.min(at, column, part), (self.row(to, part), column))

    def place(self, at: Value, quad: int, column: Value) -> Value:
        return at * SLICE * PANEL + first_byte(quad, column)

    def quads(self, at: Value, column: Value) -> list[Value]:
        lanes = 4 * self.simd.lanes
        return [name(self.codes[T.ramp(self.place(at, quad, column), 1, lanes)]) for quad in range(QUADS)]

    def row(self, at: Value, part: int) -> Value:
        return at if self.parts == 1 else name(at * self.parts + part)

    def scale(self, at: Value, column: Value, part: int) -> Value:
        return self.simd.load(self.scales, (self.row(at, part), column))

    def min(self, at: Value, column: Value, part: int) -> Value | None:
        return None if self.mins is None else self.simd.load(self.mins, (self.row(at, part), column))
