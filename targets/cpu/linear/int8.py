"""Matrix products of quantized weights and activations rounded to int8: integer dot products, a scale a group on both sides.

Activations are quantized in groups of 32, the slices that packed weights come in; a group of weights is one slice or several.

Rows are rounded once, by all threads, or a single one by each. Up to FEW of them (decoding) then multiply the packed weights
as they come from memory. With more, a task takes a panel of 32 columns and a block of rows, unpacks the panel's weights to
bytes, a block of slices at a time, and walks the rows in register tiles; where the machine has tiles of its own, those of
bfloat16 take over (`tile_product`).

An output is a sum in ascending order over slices, or over the groups of 16 that a slice may have two of, `sum += (scale_w · Σ q_w·q_x) ·
scale_x`, whose inner sums are exact integers. So its bits depend neither on the path nor on the tile nor on the rows beside it, unless
bfloat16 took over.

Where dot products are single instructions, integers begin at the bits of 1.5 · 2^23. Read as a float, such a sum is 1.5 · 2^23 + Σ, since
|Σ| < 2^22, and one multiply-add takes the first summand off while it scales the second: no conversion is left, and no bit changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeAlias

import tvm
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import KernelCost
from cupola.targets.cost import with_cost
from cupola.targets.cpu.emit.amx import MANY
from cupola.targets.cpu.emit.dot import Weights
from cupola.targets.cpu.emit.loops import in_even_tiles, in_tiles, padded, parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import CACHE_LINE, ROUND_BITS, Buffer, Simd, Value, local, name, prim_func, splat
from cupola.targets.cpu.isa import ISA
from cupola.targets.cpu.linear.amx import TileProduct
from cupola.targets.cpu.linear.epilogue import Epilogue, call_layer
from cupola.targets.cpu.linear.int8_pairs import PAIR_TILES, PairedRows, PairTile
from cupola.targets.cpu.linear.int8_rows import Int8Rows, RowSource
from cupola.targets.cpu.linear.int8_tiles import Int8Tiles
from cupola.targets.cpu.linear.packing import AHEAD, PANEL, is_static
from cupola.targets.cpu.linear.panels import SLICE_BLOCK, PackedPanel, UnpackedPanel
from cupola.targets.cpu.linear.quantized_packing import SLICE, codes_of, pack_groups
from cupola.targets.cpu.linear.shape import QuantizedShape, packed_bias, quantized_shape, residual_of
from cupola.targets.cpu.linear.stream import ABREAST, BLOCK, Run, Runs, Stream
from cupola.targets.emit import argument
from cupola.targets.ops import GatedLinear, Linear

Cover: TypeAlias = Callable[[Value, tuple[int, ...], Callable[[Value, int], None]], None]  # `in_tiles`, `in_even_tiles`
FEW = MANY - 1  # rows
UNASKED = 2  # rows at most whose weights the hardware is left to foresee: more do not stay in L1 from panel to panel
ROW_BLOCK = 192  # rows of a task: their activations stay in L2 while panels stream by


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
        product = Int8Product(k, simd, Weights(k.isa, k.codes), weight, epilogue, source, num_rows)
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
class Int8Product(Int8Tiles):
    """Emits the loops."""

    weight: Buffer
    epilogue: Epilogue
    source: RowSource
    num_rows: Value

    @property
    def stream_slices(self) -> int:
        """Slices of a panel in memory: whole groups."""
        return self.kernel.blocks * self.kernel.codes.slices

    def allocate(self, num_rows: Value | int, kind: type[Int8Rows] = Int8Rows) -> Int8Rows:
        codes, base = self.kernel.codes, ROUND_BITS if self.reads_as_floats else 0
        others = base, codes.has_mins or codes.has_zeros, codes.parts, self.kernel.isa.int8_lanes
        return kind.allocate(num_rows, self.kernel.slices, self.weights.zero, *others)

    def few(self) -> None:
        """One region: the rows, then panels. One row is rounded by every thread for itself: to wait for another core takes longer."""
        runs = Runs.allocate(self.kernel.num_panels)
        with T.If(self.num_rows == T.int64(1)):
            with T.Then():
                self.one(runs)
            with T.Else():
                self.several(runs)

    def one(self, runs: Runs) -> None:
        """One region for one row, in a tile of that row alone or several times."""
        size = self.lone_row_tile
        with parallel_region(), runs.claims.threads.each(barrier=False) as thread:
            self.fetch_first_block(runs.first(thread))
            rows = self.allocate(size)
            rows.fill(self.source, T.int64(0))
            for to in range(1, size):
                rows.copy(rows, T.int64(0), to)
            with runs.each(thread) as (run, following):
                self.run_alone(rows, run, following)

    def several(self, runs: Runs) -> None:
        """One region: the rows, a barrier, then panels."""
        sizes, threads = self.few_tiles, runs.claims.threads
        rows, count = self.allocate(FEW + sizes[0]), padded(self.num_rows, sizes[0])
        with parallel_region():
            with threads.each(barrier=False) as thread:
                self.fetch_first_block(runs.first(thread))
            with shared_loop(count) as row:  # tiles may want more rows than there are
                rows.fill(self.source, name(T.min(row, self.num_rows - 1)), to=row)
            with threads.each(barrier=False) as thread, runs.each(thread) as (run, following):
                self.run(rows, run, following, count, sizes)

    @property
    def may_come_unasked(self) -> bool:
        """True if the hardware foresees a few rows' weights: panels one after another, in which slices lie evenly."""
        return self.kernel.isa.foresees and self.kernel.codes.lies_evenly

    @property
    def lone_row_tile(self) -> int:
        """Rows of the tile that a single row is multiplied in."""
        return 1 if self.may_come_unasked else self.kernel.isa.lone_row_tile

    def if_asked(self, value: Value, other: Value) -> Value:
        """A value, or another where weights come unasked: of super-blocks for one row alone, beside whose products more is read."""
        most = UNASKED if self.kernel.codes.slices == 1 else 1
        return T.Select(self.num_rows <= T.int64(most), other, value) if self.may_come_unasked else value

    @property
    def num_blocks(self) -> Value:
        """Blocks that a panel's slices are multiplied in: of a super-block each, or of about BLOCK slices; one where they come unasked."""
        blocks = -(-self.stream_slices // max(self.kernel.codes.slices, BLOCK))
        return name(self.if_asked(T.int64(blocks), T.int64(1)))

    def first_of_block(self, block: Value | int, num_blocks: Value) -> Value:
        """The first slice of one of so many blocks, or past the last the number of slices."""
        return block * self.kernel.blocks // num_blocks * self.kernel.codes.slices

    def run(
        self, rows: Int8Rows, run: Run, following: Run, num_padded: Value, sizes: tuple[int, ...], cover: Cover = in_even_tiles
    ) -> None:
        """All rows of panels side by side, in tiles of `sizes`, that go over `num_padded` rows; `following` are probably the next."""
        products = local((ABREAST * (1 if cover is in_tiles else FEW + sizes[0]), PANEL))
        with T.serial(run.count) as i, T.serial(self.num_rows) as row:
            self.epilogue.prefetch(name(run.first + i), row)
        with T.serial(run.count * num_padded) as r:
            for column in range(0, PANEL, self.simd.lanes):
                self.simd.store(products, splat(0.0, self.simd.lanes), (r, column))
        num_blocks = self.num_blocks
        with T.serial(num_blocks) as block:
            start, stop = (name(self.first_of_block(block + end, num_blocks)) for end in range(2))
            num_slices = name(T.min(stop, T.int64(self.kernel.slices)) - start)
            asked = name(self.if_asked(num_slices, T.int64(0)))
            is_last = name(stop >= self.stream_slices)
            ahead, from_slice = run.or_else(is_last, following), name(T.Select(is_last, T.int64(0), stop))
            with T.serial(run.count) as i:
                packed = PackedPanel(self.simd, self.kernel.codes, self.weights, self.weight, name(run.first + i))

                def tile(row: Value, count: int) -> None:
                    share = [name(start + end * asked // self.num_rows) for end in (row, row + count)]

                    def fetch(at: Value) -> None:
                        with T.If(T.And(at >= share[0], at < share[1])), T.Then():
                            self.fetch_turn(ahead, from_slice, name(i * num_slices + at - start))

                    self.tile(rows, row, count, packed, start, num_slices, products, name(i * num_padded + row), False, fetch)

                cover(self.num_rows, sizes, tile)
        with T.serial(run.count) as i, T.serial(self.num_rows) as row:
            self.epilogue.finish(name(run.first + i), row, name(i * num_padded + row), products)

    def run_alone(self, rows: Int8Rows, run: Run, following: Run) -> None:
        """As `run`, of one row, which `rows` holds as often as a tile wants it."""
        size, alone = self.lone_row_tile, replace(self, num_rows=T.int64(1))
        alone.run(rows, run, following, T.int64(size), (size,), in_tiles if size == 1 else in_even_tiles)

    def fetch_first_block(self, run: Run) -> None:
        """Asks for the first slices of a run, which nothing was ahead of."""
        num_slices = self.if_asked(run.count * self.first_of_block(1, self.num_blocks), T.int64(0))
        with T.serial(num_slices) as at:
            self.fetch_turn(run, T.int64(0), at)

    def fetch_turn(self, run: Run, start: Value, at: Value) -> None:
        """Asks for slice `at` of those that a run's panels have from slice `start` on, taken in turns."""
        panel, down = run.turn(at)
        self.fetch_slice(panel, name(start + down))

    def panel(self, rows: Int8Rows, panel: Value, stream: Stream, sizes: tuple[int, ...]) -> None:
        """All rows of a panel, whose weights come from memory as the first ones of a stream, in tiles of `sizes`."""
        with T.serial(self.num_rows) as row:
            self.epilogue.prefetch(panel, row)
        products = local((max(sizes), PANEL))
        packed, slices = PackedPanel(self.simd, self.kernel.codes, self.weights, self.weight, panel), self.kernel.slices

        def tile(row: Value, count: int) -> None:
            share = [name(end * slices // self.num_rows) for end in (row, row + count)]
            ahead = AHEAD // self.kernel.codes.stride
            self.tile(
                rows, row, count, packed, T.int64(0), slices, products, T.int64(0), True, partial(self.fetch_ahead, stream, share, ahead)
            )
            with T.serial(T.int64(count)) as r:
                self.epilogue.finish(panel, row + r, r, products)

        in_tiles(self.num_rows, sizes, tile)

    def stream(self, panel: Value, num_left: Value) -> Stream:
        """From a panel on, with which `num_left` are left to the thread."""
        return Stream(panel, name(num_left * self.stream_slices))

    def fetch_first(self, stream: Stream, num_bytes: int) -> None:
        """Asks for the beginning of a stream, which nothing was ahead of."""
        with T.serial(num_bytes // self.kernel.codes.stride) as at:
            self.fetch(stream, at)

    def fetch(self, stream: Stream, at: Value | int) -> None:
        """Asks for the weights of a slice of a stream, if it has so many. What the hardware foresees ends with a page."""
        with T.If(at < stream.num_left), T.Then():
            panel, at = stream.place(at)
            self.fetch_slice(panel, at)

    def fetch_slice(self, panel: Value, at: Value | int) -> None:
        """Asks for a slice's share of its block, from whose beginning slices and what follows them are counted."""
        codes = self.kernel.codes
        size = codes.group_bytes // codes.slices
        for byte in range(0, size + (CACHE_LINE - 1 if size % CACHE_LINE else 0), CACHE_LINE):
            self.simd.prefetch(self.weight, (panel, T.int64(0), at * size + byte), near=2)  # past the panel's end it is of the next

    def fetch_ahead(self, stream: Stream, share: Sequence[Value], ahead: Value | int, at: Value) -> None:
        """Asks for the weights so many slices after a slice, if it is one of a tile's share. All tiles of rows together ask for all."""
        with T.If(T.And(at >= share[0], at < share[1])), T.Then():
            self.fetch(stream, name(at + ahead))

    def many(self) -> None:
        """One region: all rows, a barrier, then panels by blocks of rows, which have as many tiles each as there can be."""
        panels, rows = self.kernel.num_panels, self.allocate(self.num_rows, PairedRows if self.kernel.isa.int8_pairs else Int8Rows)
        size = self.tiles_of(rows)[0]
        num_blocks, num_tiles = ((self.num_rows + each - 1) // each for each in (ROW_BLOCK, size))
        num_blocks, num_tiles = name(num_blocks), name(num_tiles)
        with parallel_region():
            with shared_loop(rows.padded(self.num_rows)) as row:
                if isinstance(rows, PairedRows):
                    rows.fill(self.source, name(T.min(row, self.num_rows - 1)), to=row)
                else:
                    rows.fill(self.source, row)
            with shared_loop(num_blocks * panels, barrier=False) as task:
                block, panel = name(task // panels), name(task % panels)
                first, end = (name(T.min(at * num_tiles // num_blocks * size, self.num_rows)) for at in (block, block + 1))
                self.block(rows, panel, first, name(end - first), self.stream(panel, panels - panel))

    def tiles_of(self, rows: Int8Rows) -> tuple[int, ...]:
        """How many rows multiply unpacked weights together, the largest number first."""
        return PAIR_TILES if isinstance(rows, PairedRows) else (self.kernel.isa.int8_row_tile, 4, 2, 1)

    def block(self, rows: Int8Rows, panel: Value, first: Value, count: Value, stream: Stream) -> None:
        """`count` rows from `first` on of one panel, the first of a stream, its slices in blocks: while one is multiplied, the next is
        asked for."""
        slices = self.kernel.slices
        products, covered = local((ROW_BLOCK, PANEL)), rows.padded(count)
        unpacked = UnpackedPanel.allocate(self.simd, self.kernel.codes, in_pairs=isinstance(rows, PairedRows))
        packed = PackedPanel(self.simd, self.kernel.codes, self.weights, self.weight, panel)
        with T.serial(covered) as r:
            for start in range(0, PANEL, self.simd.lanes):
                self.simd.store(products, splat(0.0, self.simd.lanes), (r, start))
        with T.serial(-(-slices // SLICE_BLOCK)) as index:
            start = name(index * SLICE_BLOCK)
            num_slices = name(T.min(T.int64(SLICE_BLOCK), T.int64(slices) - start))
            with T.serial(num_slices) as at:
                unpacked.fill(packed, name(start + at), at)

            def tile(r: Value, size: int) -> None:
                share = [name(start + end * num_slices // count) for end in (r, r + size)]
                with T.If(start == T.int64(0)), T.Then(), T.serial(size) as i:
                    self.epilogue.prefetch(panel, first + r + i)
                ask = partial(self.fetch_ahead, stream, share, num_slices)
                row, beside = name(first + r), lambda at: ask(start + at)
                if isinstance(rows, PairedRows):
                    PairTile(self.simd, rows, unpacked, products).add(row, size, start, num_slices, r, beside)
                else:
                    self.tile(rows, row, size, unpacked, start, num_slices, products, r, False, beside)

            in_tiles(covered, self.tiles_of(rows), tile)
        with T.serial(count) as r:
            self.epilogue.finish(panel, first + r, r, products)

    @property
    def few_tiles(self) -> tuple[int, ...]:
        """Rows of tiles whose weights come from memory: even numbers, the largest first."""
        largest = next(rows for rows in (8, 6) if 2 * rows + 3 <= self.kernel.isa.num_registers)
        return tuple(range(largest, 0, -2))
