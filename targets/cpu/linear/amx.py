"""Products of many rows and a quantized weight in bfloat16 tiles, whose sums are float32.

Rows that are not bfloat16 yet are rounded once, by all threads. A task then takes a panel of 32 columns and a block of rows, and walks the
rows two tiles at a time, over as many of the panel's slices of 32 inputs as L1 holds in bfloat16. A product takes as long as a dozen vector
instructions, which run beside it: while a panel's last two tiles and the next one's first two are multiplied, the next one's slices are
dequantized, half a slice a turn, in the place of those that are done; meanwhile the results of the two tiles before go through the
epilogue.

Both sides keep 8 significant bits, more than activations of 8 bits a group have; but a row that is multiplied here has other bits than
one that `int8_linear` multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.dot import Weights as Unpacked
from cupola.targets.cpu.emit.loops import Threads, between, in_tiles, parallel_region, shared_loop
from cupola.targets.cpu.emit.simd import CACHE_LINE, Buffer, Simd, Value, local, name, splat
from cupola.targets.cpu.linear.epilogue import Epilogue
from cupola.targets.cpu.linear.factors import Factors
from cupola.targets.cpu.linear.int8_rows import RowSource
from cupola.targets.cpu.linear.packing import PANEL
from cupola.targets.cpu.linear.quantized_packing import COLUMNS, HALVES, QUAD, QUADS, SLICE, Codes

ROW_BLOCK = 256  # rows of a task: their activations stay in L2 while panels stream by
SLICE_BLOCK = 20  # slices of a panel that are dequantized at once, at most: 40 KB, which stay in L1
LINES_AHEAD = 2  # of each slice that comes next, asked for at each pair of tiles
PAIRS = SLICE // 2  # rows of a tile of weights
# Tile registers: sums by tile of rows and half of a panel, two tiles of rows, two of weights.
SUMS, ROWS, WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)


@dataclass(frozen=True)
class TileProduct:
    """One kernel's loops. `weight` is uint8 [panels, groups, bytes of a group], as `quantized_packing` says."""

    simd: Simd
    weight: Buffer
    codes: Codes
    slices: int
    source: RowSource
    epilogue: Epilogue
    num_rows: Value

    @property
    def blocks(self) -> int:
        """Blocks of slices."""
        return -(-self.slices // SLICE_BLOCK)

    @property
    def block_slices(self) -> int:
        """Slices of a block; the last may have fewer."""
        return -(-self.slices // self.blocks)

    def run(self) -> None:
        """One region: rows that must be rounded and a barrier, then panels by blocks of rows."""
        panels, rows = self.epilogue.num_panels, TileRows.of(self.source, self.num_rows, self.slices)
        count, threads = name((self.num_rows + ROW_BLOCK - 1) // ROW_BLOCK * panels), Threads.of_region()
        with parallel_region():
            if rows.rounded is not None:
                with shared_loop(self.num_rows) as row:
                    rows.round_row(row)
            with threads.each(barrier=False) as thread:
                scratch = Scratch.allocate(self)
                tiles.configure()
                end = name(threads.first(thread + 1, count))
                with threads.share(thread, count) as task:
                    following = Slices(name((task + 1) % panels), 0, self.block_slices, task + 1 < end)
                    self.block(rows, scratch, name(task % panels), name(task // panels * ROW_BLOCK), following)
                tiles.release()

    def block(self, rows: TileRows, scratch: Scratch, panel: Value, first: Value, following: Slices) -> None:
        """A block of rows, from `first` on, of one panel, its slices in blocks; `following` are dequantized next."""
        count = T.min(self.num_rows - first, T.int64(ROW_BLOCK))
        num_tiles = name((count + tiles.ROWS - 1) // tiles.ROWS)
        results = _Results(self.epilogue, rows, panel, name(first // tiles.ROWS), num_tiles, scratch.products)
        starts = range(0, self.slices, self.block_slices)
        blocks = [Slices(panel, start, min(self.block_slices, self.slices - start), T.bool(True)) for start in starts]
        for slices, after in zip(blocks, [*blocks[1:], following], strict=True):
            turns = _Turns(slices, after, num_tiles, name(scratch.halves_done[0]))

            def multiply(tile: Value, size: int, turns: _Turns = turns) -> None:
                self.multiply(tile, size, rows, scratch, turns, results)

            in_tiles(num_tiles, (2, 1), multiply)
            T.buffer_store(scratch.halves_done, turns.halves_after, [0])
        last = name((num_tiles - 1) // 2)
        with T.serial(2 * tiles.ROWS) as r:
            results.write(last, r)

    def multiply(self, tile: Value, size: int, rows: TileRows, scratch: Scratch, turns: _Turns, results: _Results) -> None:
        """Adds the products of `size` tiles of rows and a block's slices. The last block's are results."""
        slices, weights, sums = turns.slices, scratch.weights, scratch.sums
        is_last = slices.start + slices.count == self.slices
        places = [(SUMS[i][half], name((tile + i) * tiles.ROWS), half * COLUMNS) for i in range(size) for half in range(HALVES)]
        for total, r, column in places:
            if slices.start == 0 or sums is None:
                tiles.clear(total)
            else:
                tiles.load(total, sums[r, column], 4 * PANEL)
        pair, row_tile = name(tile // 2), name(results.first_tile + tile)
        rows_beside = -(-2 * tiles.ROWS // slices.count)
        with T.serial(T.int64(slices.count)) as at:
            turns.dequantize(self, pair, at, weights)
            self.fetch_beside(slices, at, pair, turns.num_tiles)
            for i in range(size):
                rows.load(ROWS[i], row_tile + i, slices.start + at)
                for half in range(HALVES):
                    if i == 0:
                        tiles.load(WEIGHTS[half], weights[at, half, 0, 0])
                    tiles.multiply_bf16(SUMS[i][half], ROWS[i], WEIGHTS[half])
            if is_last:
                for r in range(rows_beside):
                    results.write(pair - 1, name(at * rows_beside + r))
        for index, (total, r, column) in enumerate(places):
            if is_last:
                tiles.store(total, results.products[index // HALVES * tiles.ROWS, column], 4 * PANEL)
            elif sums is not None:
                tiles.store(total, sums[r, column], 4 * PANEL)

    def fetch_beside(self, slices: Slices, at: Value, pair: Value, num_tiles: Value) -> None:
        """Beside a pair of tiles, brings some of what comes after a block's slice `at`: while the first is multiplied, that was done."""
        with T.If(pair > T.int64(0)), T.Then():
            self.fetch(slices.panel, slices.start + slices.count + at, name((pair - 1) * LINES_AHEAD * CACHE_LINE))

    def fetch(self, panel: Value, at: Value, byte: Value) -> None:
        """Brings some of a slice into L2, from a byte on. Behind a block's slices stand those that come next, the next panel's perhaps."""
        codes = self.codes
        with T.If(byte < T.int64(codes.stride)), T.Then():
            group, first = codes.place(at, codes.stride)
            for line in range(LINES_AHEAD):
                self.simd.prefetch(self.weight, (panel, group, byte + line * CACHE_LINE + first), near=2)

    def dequantize(self, panel: Value, at: Value, half: Value, weights: Buffer, to: Value) -> None:
        """Half a slice's weights as a tile, in which a row has two inputs of each of 16 columns.

        Where a code u stands in the mantissa of a float v = 1 + u / steps, its weight is one multiply-add away. Beside a minimum, what
        the 1 adds would take bits of it, and beside a scale of a super-block, which has more than a float16, of that: there v - 1 is
        multiplied. Beside a zero, or scales with bits of their own, v less what stands for 0 is, which is exact.
        """
        codes, lanes = self.codes, self.simd.lanes
        if not codes.is_plain or codes.format.table:
            self.dequantize_unpacked(panel, at, half, weights, to)
            return
        factors = self.doubled(panel, at, 0, half, codes.offset)
        with T.serial(codes.slice_bytes // (4 * PANEL)) as block:
            words = self.words(panel, at, block, half)
            for pair in range(QUAD // 2):
                sides = [self.pair_of_bytes(words, pair, start) for start in (0, lanes // 2)]
                for place, (mask, pairs) in enumerate(zip(self.masks, factors, strict=True)):
                    values = [self.weight_of(side, mask, *factor) for side, factor in zip(sides, pairs, strict=True)]
                    row = block * (PAIRS * 4 * PANEL // codes.slice_bytes) + place * (QUAD // 2) + pair
                    T.buffer_store(weights, tiles.to_bf16(*values), [to, half, row, T.ramp(0, 1, 2 * COLUMNS)])

    def dequantize_unpacked(self, panel: Value, at: Value, half: Value, weights: Buffer, to: Value) -> None:
        """The same of codes that lie in parts, that stand for a table's entries, or whose slices have several scales: quad by quad."""
        unpacked, parts, lanes = Unpacked(self.simd.isa, self.codes), self.codes.parts, self.simd.lanes
        for quad, numbers in enumerate(unpacked.unpack(self.weight, panel, at, name(half * COLUMNS))):
            if quad % (QUADS // parts) == 0:
                (factors,) = self.doubled(panel, at, quad * parts // QUADS, half, unpacked.zero)
            words = name(T.reinterpret("int32x16", numbers))
            for pair in range(QUAD // 2):
                sides = [self.pair_of_bytes(words, pair, start) for start in (0, lanes // 2)]
                values = [self.weight_of(side, self.masks[0], *factor) for side, factor in zip(sides, factors, strict=True)]
                T.buffer_store(weights, tiles.to_bf16(*values), [to, half, quad * (QUAD // 2) + pair, T.ramp(0, 1, 2 * COLUMNS)])

    def doubled(self, panel: Value, at: Value, part: int, half: Value, zero: int) -> list[list[list[Value]]]:
        """The factors of codes that stand in a mantissa, and what `beside` says: by a code's place in its byte and by half of the lanes,
        whose columns come twice each."""
        codes, lanes, column = self.codes, self.simd.lanes, name(half * COLUMNS)
        read = Factors(self.simd, codes, self.weight, Unpacked(self.simd.isa, codes).unit)
        orders = [[lane // 2 + start for lane in range(lanes)] for start in (0, lanes // 2)]
        scale = read.scale(panel, at, part, column)
        low = read.zero(panel, at, part, column) if codes.has_zeros else read.min(panel, at, part, column)
        factors = []
        for mask in self.masks:
            steps = (1 << 23) // (mask & -mask)
            scaled = name(scale * splat(float(steps), lanes))
            beside = self.beside(scale, scaled, low, zero, steps)
            factors.append([[name(T.Shuffle([value], order)) for value in (scaled, beside)] for order in orders])
        return factors

    @property
    def is_centred(self) -> bool:
        """True if what stands for 0 is taken off codes before they are scaled: multiply-adds would lose bits."""
        form = self.codes.format
        return form.has_zeros or (form.scale_dtype == "float32" and not form.has_mins and not form.super_size)

    @property
    def subtracts(self) -> bool:
        """True if v - 1 is multiplied."""
        return self.codes.has_mins or not self.codes.is_plain or bool(self.codes.format.table)

    def beside(self, scale: Value, scaled: Value, low: Value | None, zero: int, steps: int) -> Value:
        """The second factor of `weight_of`: v of the code that stands for 0, or the value of code 0."""
        lanes = self.simd.lanes
        if self.codes.has_mins:
            return low
        if not self.is_centred:
            lowest = scale * splat(-float(zero), lanes)
            return name(lowest if self.subtracts else lowest - scaled)
        if low is None:
            return splat(1 + zero / steps, lanes)
        sign = 128.0 if self.codes.bits == 8 else 0.0  # zeros of codes of 8 bits have their sign
        return name((low + splat(sign + steps, lanes)) * splat(1 / steps, lanes))

    @property
    def masks(self) -> tuple[int, ...]:
        """Where the codes of a byte stand in a word that has it twice, in the middle: within a float's mantissa."""
        return (0xF << 16, 0xF << 12) if self.codes.bits == 4 and self.codes.is_plain and not self.codes.format.table else (0xFF << 8,)

    def weight_of(self, words: Value, mask: int, scaled: Value, beside: Value) -> Value:
        """The weights that the codes which `mask` leaves of words stand for."""
        one, v = splat(1.0, self.simd.lanes), name(T.reinterpret("float32x16", (words & _int(mask)) | _int(0x3F800000)))
        if self.is_centred:
            return (v - beside) * scaled
        return self.simd.fma(v - one if self.subtracts else v, scaled, beside)

    def pair_of_bytes(self, words: Value, pair: int, start: int) -> Value:
        """Of the 8 columns from `start` on two bytes each, those of a pair of inputs: words that have one four times."""
        order = [4 * (start + lane // 2) + 2 * pair + lane % 2 for lane in range(self.simd.lanes) for _ in range(4)]
        return name(T.reinterpret("int32x16", T.Shuffle([T.reinterpret("int8x64", words)], order)))

    def words(self, panel: Value, at: Value, block: Value, half: Value) -> Value:
        """16 columns' codes of a quad or a pair of quads, none below 0."""
        group, first = self.codes.place(at, self.codes.slice_step)
        place = block * (4 * PANEL) + half * (4 * COLUMNS) + first
        words = T.reinterpret("int32x16", self.weight[panel, group, T.ramp(place, 1, 64)])
        return name(words ^ _int(-0x7F7F7F80) if self.codes.bits == 8 else words)


@dataclass(frozen=True)
class Scratch:
    """A thread's own memory.

    Attributes:
        weights: a block of slices in tiles, bits of bfloat16, [slice, half of the panel, pair of inputs, column and one of the pair].
        sums: of the blocks of slices before, [row, column].
        products: of two tiles of rows, on their way out, [row, column].
        halves_done: of the slices of the next block, how many halves are dequantized, [1].
    """

    weights: Buffer
    sums: Buffer | None
    products: Buffer
    halves_done: Buffer

    @staticmethod
    def allocate(product: TileProduct) -> Scratch:
        weights = local((product.block_slices, HALVES, PAIRS, 2 * COLUMNS), "uint16")
        sums, halves_done = local((ROW_BLOCK, PANEL)) if product.blocks > 1 else None, local(1, "int64")
        T.buffer_store(halves_done, T.int64(0), [0])
        return Scratch(weights, sums, local((2 * tiles.ROWS, PANEL)), halves_done)


@dataclass(frozen=True)
class Slices:
    """A block of slices of a panel, `count` from `start` on, if there is one."""

    panel: Value
    start: int
    count: int
    exists: Value


@dataclass(frozen=True)
class _Turns:
    """When the weights of a block of slices are dequantized, half a slice at a time: each before the first pair of tiles needs it, and some
    of the next block's while the last pair is multiplied, which is done with those in their place. `halves_done` were in the block before.
    """

    slices: Slices
    after: Slices
    num_tiles: Value
    halves_done: Value

    @property
    def is_shared(self) -> Value:
        """True if some of the next block's slices come in this one."""
        return T.And(self.num_tiles > T.int64(2), self.after.exists)

    @property
    def halves_after(self) -> Value:
        """Halves of the next block that are dequantized in this one."""
        count = min(self.slices.count, 2 * self.after.count) if self.slices.count > 1 else 0
        return T.Select(self.is_shared, T.int64(count), T.int64(0))

    def dequantize(self, product: TileProduct, pair: Value, at: Value, weights: Buffer) -> None:
        """Dequantizes what is due before slice `at` of a pair of tiles is multiplied."""
        slices, after = self.slices, self.after
        is_first, is_last = pair == T.int64(0), T.And(pair == (self.num_tiles - 1) // 2, self.is_shared)
        each = T.Select(self.halves_done < T.int64(slices.count), T.int64(2), T.int64(1))
        begin = T.Select(is_first, self.halves_done + each * at, T.Select(at > T.int64(1), at, T.int64(0)))
        end = T.Select(is_first, begin + each, T.Select(at > T.int64(0), at + 1, T.int64(0)))
        size = T.Select(is_first, T.int64(2 * slices.count), T.int64(2 * after.count))
        panel = name(T.Select(is_first, slices.panel, after.panel))
        start = name(T.Select(is_first, T.int64(slices.start), T.int64(after.start)))
        with T.If(T.Or(is_first, is_last)), T.Then(), between(name(begin), name(T.max(T.min(end, size), begin))) as half:
            product.dequantize(panel, name(start + half // 2), name(half % 2), weights, name(half // 2))


@dataclass(frozen=True)
class TileRows:
    """Where tiles of rows come from: `rounded`, bfloat16's bits [tiles, slices, 16, 32], or the rows themselves if they need nothing.

    The last tile of those begins where it ends with the last row: some rows of the tile before come again.
    """

    source: RowSource
    num_rows: Value
    rounded: Buffer | None

    @staticmethod
    def of(source: RowSource, num_rows: Value, slices: int) -> TileRows:
        if source.x.dtype == "bfloat16" and source.norm is None and source.depth % SLICE == 0:
            return TileRows(source, num_rows, None)
        tile_count = (num_rows + tiles.ROWS - 1) // tiles.ROWS
        return TileRows(source, num_rows, T.alloc_buffer((tile_count, slices, tiles.ROWS, SLICE), "uint16", scope="global"))

    def round_row(self, row: Value) -> None:
        """Inputs past the depth become zeros; rows past the last stay what they are."""
        tile, r = name(row // tiles.ROWS), name(row % tiles.ROWS)

        def store(at: Value | int, low: Value, high: Value) -> None:
            T.buffer_store(self.rounded, tiles.to_bf16(low, high), [tile, at, r, T.ramp(0, 1, SLICE)])

        self.source.for_each_group(row, store)

    def first(self, tile: Value) -> Value:
        """The first row of a tile."""
        start = name(tile * tiles.ROWS)
        return start if self.rounded is not None else name(T.min(start, self.num_rows - tiles.ROWS))

    def load(self, register: int, tile: Value, at: Value) -> None:
        """A tile's inputs of a slice."""
        if self.rounded is not None:
            tiles.load(register, self.rounded[tile, at, 0, 0], streamed=True)
        else:
            tiles.load(register, self.source.x[self.first(tile), at * SLICE], 2 * self.source.depth, streamed=True)


@dataclass(frozen=True)
class _Results:
    """Rows of results on their way out, two tiles at a time: while two are multiplied, those before are written."""

    epilogue: Epilogue
    rows: TileRows
    panel: Value
    first_tile: Value
    num_tiles: Value
    products: Buffer  # [32, 32]

    def write(self, pair: Value, r: Value) -> None:
        """Row `r` of a pair of tiles, if there is such a pair and row."""
        tile = name(pair * 2 + r // tiles.ROWS)
        row = name(self.rows.first(name(self.first_tile + tile)) + r % tiles.ROWS)
        is_new = row >= (self.first_tile + tile) * tiles.ROWS  # not of the tile before, whose results perhaps stand where residuals stood
        is_there = T.And(T.And(pair >= T.int64(0), r < T.int64(2 * tiles.ROWS)), T.And(tile < self.num_tiles, row < self.rows.num_rows))
        with T.If(T.And(is_there, is_new)), T.Then():
            self.epilogue.finish(self.panel, row, r, self.products)


def _int(value: int) -> Value:
    return T.broadcast(T.int32(value), 16)
