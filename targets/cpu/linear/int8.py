"""Matrix products of quantized weights and activations rounded to int8: integer dot products, a scale a group on both sides.

Rows are rounded once, by all threads, or a single one by each. Up to FEW of them (decoding) then multiply the packed weights
as they come from memory. With more, a task takes a panel of 32 columns and a block of rows, unpacks the panel's weights to
bytes, a block of groups at a time, and walks the rows in register tiles; where the machine has tiles of its own, those of
bfloat16 take over (`tile_product`).

An output is a sum over groups in ascending order, `sum += (scale_w · Σ q_w·q_x) · scale_x`, whose inner sums are exact integers.
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
from cupola.targets.cpu.linear.epilogue import Epilogue, adds_in_place, call_layer
from cupola.targets.cpu.linear.int8_rows import Int8Rows, RowSource
from cupola.targets.cpu.linear.packing import PANEL, is_static, num_panels, pack_columns, pack_gated_columns, shape_of
from cupola.targets.cpu.linear.quantized_packing import QUADS, Codes, codes_of, first_byte, pack_groups
from cupola.targets.ops import GROUP, GatedLinear, Linear

FEW = MANY - 1  # rows
ROW_BLOCK = 96  # rows of a task: their activations stay in L2 while panels stream by
GROUP_BLOCK = 24  # groups of a panel that are unpacked at once: 24 KB, which stay in L1
FIRST, AHEAD = 8192, 16384  # bytes of weights that are asked for before anything else, and before those that are multiplied


@dataclass(frozen=True)
class _Kernel:
    """What distinguishes one kernel from another; `num_outputs` counts columns of the result."""

    isa: ISA
    num_outputs: int
    depth: int
    groups: int
    codes: Codes
    gated: bool
    has_bias: bool
    has_residual: bool
    activation: str
    has_norm: bool
    epsilon: float
    x_dtype: str
    out_dtype: str
    in_place: bool

    @property
    def num_panels(self) -> int:
        return num_panels(self.num_outputs * (2 if self.gated else 1))


def lower_int8_linear(isa: ISA, call: relax.Call, builder: relax.BlockBuilder) -> relax.Expr | None:
    """`Linear` and `GatedLinear` with quantized weights, whose activations are to be rounded."""
    op = Linear.match(call) or GatedLinear.match(call)
    if op is None or op.scales is None or not op.quantize_x or op.x.ty.ndim != 2 or not is_static(op.weight):
        return None
    gated, residual = isinstance(op, GatedLinear), op.residual if isinstance(op, Linear) else None
    (n, k), depth = shape_of(op.weight), int(op.x.ty.shape[1])
    kernel = _Kernel(
        isa, n // 2 if gated else n, depth, k // GROUP, codes_of(op.weight, op.mins), gated, op.bias is not None, residual is not None,
        op.activation, op.norm is not None, op.epsilon, str(op.x.ty.dtype), str(call.ty.dtype), adds_in_place(op, call.ty),
    )  # fmt: skip
    arguments = [op.x, pack_groups(op.weight, op.scales, op.mins, gated, builder)]
    arguments += [] if op.bias is None else [(pack_gated_columns if gated else pack_columns)(op.bias, builder)]
    arguments += [extra for extra in (residual, op.norm) if extra is not None]
    label = f"{'gated_' if gated else ''}linear_{kernel.num_outputs}x{depth}_w{kernel.codes.bits}{'m' if op.mins is not None else ''}a8"
    return call_layer(builder.add_func(_build(kernel), label), arguments, call.ty, residual if kernel.in_place else None)


@cache
def _build(kernel: _Kernel) -> tvm.tirx.PrimFunc:
    k = kernel

    def body() -> None:
        num_rows = T.int64()
        x = argument("x", (num_rows, k.depth), k.x_dtype)
        weight = argument("weight", (k.num_panels, k.groups, k.codes.group_bytes), "uint8")
        bias = argument("bias", (k.num_panels * PANEL,), "float32") if k.has_bias else None
        residual = argument("residual", (num_rows, k.num_outputs), "float32") if k.has_residual else None
        norm = argument("norm", (k.depth,), "float32") if k.has_norm else None
        out = residual if k.in_place else argument("out", (num_rows, k.num_outputs), k.out_dtype)
        simd = Simd(k.isa)
        epilogue = Epilogue(simd, k.num_outputs, k.gated, k.activation, bias, residual, out)
        source = RowSource(simd, x, k.depth, norm, k.epsilon)
        product = _Product(k, simd, weight, epilogue, source, Weights(k.isa, k.codes), num_rows)
        with T.If(num_rows <= T.int64(FEW)):
            with T.Then():
                product.few()
            with T.Else():
                if k.isa.bf16_tiles:
                    TileProduct(simd, weight, k.codes, k.groups, source, epilogue, num_rows).run()
                else:
                    product.many()

    return with_cost(
        prim_func(body),
        KernelCost("bfloat16" if k.isa.bf16_tiles else "int8", operations_per_row=2 * k.num_outputs * k.depth * (2 if k.gated else 1)),
    )


@dataclass(frozen=True)
class _Product:
    """Emits the loops."""

    kernel: _Kernel
    simd: Simd
    weight: Buffer
    epilogue: Epilogue
    source: RowSource
    weights: Weights
    num_rows: Value

    def allocate(self, num_rows: Value | int) -> Int8Rows:
        return Int8Rows.allocate(num_rows, self.kernel.groups, self.weights.zero, self.kernel.codes.has_mins)

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
            rows, num_asked = self.allocate(1), FIRST // self.kernel.codes.group_bytes
            rows.fill(self.source, T.int64(0), lambda group: self.fetch(first, group + num_asked))  # memory is busy meanwhile
            with claims.each(thread) as panel:
                known.panel(rows, panel, claims.left_of(thread, panel), (1,))

    def several(self, claims: Claims) -> None:
        """One region: the rows, a barrier, then panels."""
        rows, threads = self.allocate(FEW), claims.threads
        with parallel_region():
            with threads.each(barrier=False) as thread:
                self.fetch_first(self.first_stream(claims, thread), AHEAD)
            with shared_loop(self.num_rows) as row:
                rows.fill(self.source, row)
            with threads.each(barrier=False) as thread, claims.each(thread) as panel:
                self.panel(rows, panel, claims.left_of(thread, panel), (self.kernel.isa.int8_row_tile, 4, 2, 1))

    def panel(self, rows: Int8Rows, panel: Value, num_left: Value, sizes: tuple[int, ...]) -> None:
        """All rows of a panel, whose weights come from memory, in tiles of `sizes`. With it, `num_left` panels are left to the thread."""
        with T.serial(self.num_rows) as row:
            self.epilogue.prefetch(panel, row)
        products = local((self.kernel.isa.int8_row_tile, PANEL))
        packed, groups = _Packed(self.kernel, self.simd, self.weights, self.weight, panel), self.kernel.groups
        stream = _Stream(panel, name(num_left * groups))

        def tile(row: Value, count: int) -> None:
            self.tile(rows, row, count, packed, T.int64(0), groups, products, T.int64(0), True, stream)
            with T.serial(count) as r:
                self.epilogue.finish(panel, row + r, r, products)

        in_tiles(self.num_rows, sizes, tile)

    def first_stream(self, claims: Claims, thread: Value) -> _Stream:
        """A thread's whole share."""
        panel = name(claims.threads.first(thread, claims.count))
        return _Stream(panel, name(claims.left_of(thread, panel) * self.kernel.groups))

    def fetch_first(self, stream: _Stream, num_bytes: int) -> None:
        """Asks for the beginning of a stream, which nothing was ahead of."""
        with T.serial(num_bytes // self.kernel.codes.group_bytes) as group:
            self.fetch(stream, group)

    def fetch(self, stream: _Stream, group: Value) -> None:
        """Asks for the weights of a group of a stream, if it has so many. What the hardware foresees ends with a page."""
        with T.If(group < stream.num_left), T.Then():
            for byte in range(0, self.kernel.codes.group_bytes, CACHE_LINE):
                self.simd.prefetch(self.weight, (stream.panel, group, byte), near=2)  # past the end it is one of the next panel

    def fetch_ahead(self, stream: _Stream, group: Value, first: Value, last: Value) -> None:
        """Asks for the weights `AHEAD` bytes after a group, if it is one of a tile's share. All tiles of rows together ask for all."""
        with T.If(T.And(group >= first, group < last)), T.Then():
            self.fetch(stream, name(group + AHEAD // self.kernel.codes.group_bytes))

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
        """`count` rows from `first` on of one panel, its groups in blocks."""
        groups = self.kernel.groups
        products, unpacked = local((ROW_BLOCK, PANEL)), _Unpacked.allocate(self.kernel, self.simd)
        packed = _Packed(self.kernel, self.simd, self.weights, self.weight, panel)
        with T.serial(count) as r:
            for start in range(0, PANEL, self.simd.lanes):
                self.simd.store(products, splat(0.0, self.simd.lanes), (r, start))
        with T.serial(-(-groups // GROUP_BLOCK)) as index:
            start = name(index * GROUP_BLOCK)
            num_groups = name(T.min(T.int64(GROUP_BLOCK), T.int64(groups) - start))
            with T.serial(num_groups) as group:
                unpacked.fill(packed, name(start + group), group)

            def tile(r: Value, size: int) -> None:
                self.tile(rows, name(first + r), size, unpacked, start, num_groups, products, r, fresh=False)

            in_tiles(count, (self.kernel.isa.int8_row_tile, 4, 2, 1), tile)
        with T.serial(count) as r:
            self.epilogue.finish(panel, first + r, r, products)

    def add(self, total: Register, exact: Value, low: Value | None, rows: Int8Rows, place: Value) -> None:
        """total += exact · scale of x + low · scale · Σq of x, for a vector of columns and a place in the rows."""
        lanes = self.simd.lanes
        total.set(self.simd.fma(exact, splat(rows.scale(place), lanes), total.get()))
        if low is not None and (x_sum := rows.sum(place)) is not None:
            total.set(self.simd.fma(low, splat(x_sum, lanes), total.get()))

    def tile(
        self, rows: Int8Rows, row: Value, size: int, panel: _Panel, start: Value, num_groups: Value | int,
        products: Buffer, r: Value, fresh: bool, stream: _Stream | None = None,
    ) -> None:  # fmt: skip
        """Adds the products of `size` rows and a panel's groups from `start` on to rows `r`… of `products`, or puts them there; `stream`
        is where the panel comes from memory."""
        lanes, vectors = self.simd.lanes, self.vectors_beside(size)
        share = [] if stream is None else [name(end * num_groups // self.num_rows) for end in (row, row + size)]
        with T.serial(PANEL // lanes // vectors) as part:
            columns = [name((part * vectors + vector) * lanes) for vector in range(vectors)]
            sums = [[self.first_sum(products, r + i, column, fresh) for column in columns] for i in range(size)]
            with T.serial(num_groups) as group:
                if stream is not None:
                    self.fetch_ahead(stream, group, *share)
                self.group(rows, row, name(start + group), panel, group, columns, sums)
            for i in range(size):
                for column, total in zip(columns, sums[i], strict=True):
                    self.simd.store(products, total.get(), (r + i, column))

    def first_sum(self, products: Buffer, r: Value, column: Value, fresh: bool) -> Register:
        total = Register(self.simd.lanes, 0.0 if fresh else None)
        if not fresh:
            total.set(self.simd.load(products, (r, column)))
        return total

    def group(
        self, rows: Int8Rows, row: Value, at: Value, panel: _Panel, group: Value, columns: list[Value], sums: list[list[Register]]
    ) -> None:
        """Adds one group's products: `at` is its place in the rows, `group` that in the panel."""
        lanes = self.simd.lanes
        places = [rows.place(row + i, at) for i in range(len(sums))]
        starts = [rows.start(place) for place in places]
        integers = [[Register(lanes, start, "int32") for _ in columns] for start in starts]
        weights = [panel.quads(group, column) for column in columns]
        for quad in range(QUADS):
            for i, totals in enumerate(integers):
                x = rows.quad(places[i], quad)
                for total, vectors in zip(totals, weights, strict=True):
                    total.set(self.weights.dot(total.get(), vectors[quad], x))
        for vector, column in enumerate(columns):
            scale, low = panel.scale(group, column), panel.min(group, column)
            for i, totals in enumerate(integers):
                exact = name(T.cast(totals[vector].get(), f"float32x{lanes}") * scale)
                self.add(sums[i][vector], exact, low, rows, places[i])

    def vectors_beside(self, rows: int) -> int:
        """Vectors of a panel whose sums of `rows` rows, as integers and as floats, fit the registers."""
        available, registers = PANEL // self.simd.lanes, self.kernel.isa.num_registers
        return max(size for size in (1, 2, 4) if size == 1 or (size <= available and (2 * rows + 1) * size + 2 <= registers))


@dataclass(frozen=True)
class _Stream:
    """A panel that comes from memory, and how many groups, its own with them, a thread has still to read from there on."""

    panel: Value
    num_left: Value


class _Panel(Protocol):
    """Where a tile has a panel's weights from."""

    def quads(self, group: Value, column: Value) -> list[Value]: ...

    def scale(self, group: Value, column: Value) -> Value: ...

    def min(self, group: Value, column: Value) -> Value | None: ...


@dataclass(frozen=True)
class _Packed:
    """The weights as they are stored."""

    kernel: _Kernel
    simd: Simd
    weights: Weights
    weight: Buffer
    panel: Value

    def quads(self, group: Value, column: Value) -> list[Value]:
        return self.weights.unpack(self.weight, self.panel, group, column)

    def scale(self, group: Value, column: Value) -> Value:
        return self.factor(group, column, 0)

    def min(self, group: Value, column: Value) -> Value | None:
        return self.factor(group, column, 2 * PANEL) if self.kernel.codes.has_mins else None

    def factor(self, group: Value, column: int, offset: int) -> Value:
        place = self.kernel.codes.code_bytes + offset + 2 * column
        return self.simd.load_from_bytes(self.weight, (self.panel, group, place), "float16")


@dataclass(frozen=True)
class _Unpacked:
    """Some of a panel's groups as bytes and float32: int8 [groups · 1024], float32 [groups, 32]."""

    simd: Simd
    codes: Buffer
    scales: Buffer
    mins: Buffer | None

    @staticmethod
    def allocate(kernel: _Kernel, simd: Simd) -> _Unpacked:
        mins = local((GROUP_BLOCK, PANEL)) if kernel.codes.has_mins else None
        return _Unpacked(simd, local(GROUP_BLOCK * GROUP * PANEL, "int8"), local((GROUP_BLOCK, PANEL)), mins)

    def fill(self, packed: _Packed, group: Value, to: Value) -> None:
        """Takes in group `group` of a packed panel as number `to`."""
        with T.serial(PANEL // self.simd.lanes) as vector:
            column = name(vector * self.simd.lanes)
            for quad, vector in enumerate(packed.quads(group, column)):
                T.buffer_store(self.codes, vector, [T.ramp(self.place(to, quad, column), 1, 4 * self.simd.lanes)])
            self.simd.store(self.scales, packed.scale(group, column), (to, column))
            if self.mins is not None:
                self.simd.store(self.mins, packed.min(group, column), (to, column))

    def place(self, group: Value, quad: int, column: Value) -> Value:
        return group * GROUP * PANEL + first_byte(quad, column)

    def quads(self, group: Value, column: Value) -> list[Value]:
        lanes = 4 * self.simd.lanes
        return [name(self.codes[T.ramp(self.place(group, quad, column), 1, lanes)]) for quad in range(QUADS)]

    def scale(self, group: Value, column: Value) -> Value:
        return self.simd.load(self.scales, (group, column))

    def min(self, group: Value, column: Value) -> Value | None:
        return None if self.mins is None else self.simd.load(self.mins, (group, column))
