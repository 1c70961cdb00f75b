"""A chunk of keys and values for the rows of a tile, in strips of a few vectors, which leaves the chunk's state.

While a strip is worked on, the next one's keys or values are fetched: memory then is busy all the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.numbers import Bf16Pairs, FloatNumbers, LatentCodes, Numbers, PairNumbers
from cupola.targets.cpu.attention.row_tile import HIDDEN, LOG2_E, Ahead, State, Tile
from cupola.targets.cpu.emit.loops import between
from cupola.targets.cpu.emit.simd import Buffer, Register, Value, local, name, pieces, splat, tree


def numbers_of(tile: Tile, num_tiles: int = 1) -> Numbers:
    """Memory for `tile`, or for so many like it."""
    kernel = tile.kernel
    of_codes, of_floats = LatentCodes if kernel.is_latent else PairNumbers, Bf16Pairs if kernel.pairs_bf16 else FloatNumbers
    return (of_codes if kernel.is_quantized else of_floats).allocate(tile, num_tiles)


def run_chunk(numbers: Numbers, chunk: Value, state: State, ahead: Ahead) -> None:
    """Makes `state` that of one chunk, which was copied where `numbers` has room for it, and asks for the first keys and values `ahead`."""
    tile, kernel = numbers.tile, numbers.tile.kernel
    at, (low, high) = name(chunk * kernel.chunk), tile.keys_of(chunk)
    tile.fill(state, 0, 2 * kernel.padded(tile.num_rows), 0.0)
    strip = kernel.strip(tile.num_rows)
    strips = Strips(tile, numbers, state, at, strip, name(low // strip), name((high + strip - 1) // strip), ahead)
    strips.score()
    strips.weigh()
    strips.add_values(low, high)


@dataclass(frozen=True)
class Strips:
    """The chunk that begins at position `at`, from strip `begin` to `end`. The last strip asks for what is `ahead`."""

    tile: Tile
    numbers: Numbers
    state: State
    at: Value
    width: int
    begin: Value
    end: Value
    ahead: Ahead

    def vectors(self, strip: Value) -> list[tuple[Value, Value]]:
        """The block, and the offset in it, of each vector of a strip."""
        return [self.place(self.at + strip * self.width + start) for start in range(0, self.width, self.tile.simd.lanes)]

    def after(self, strip: Value, every: int) -> tuple[Value, list[tuple[Value, Value]]]:
        """The group, and the places of `every` so many keys, of the strip after `strip`; past the context, of what is read anyway.

        Of latents, of this strip in the next chunk: all of this chunk was fetched as it was turned.
        """
        is_last, ahead, t = strip + 1 >= self.end, self.ahead, self.tile.tensors
        if self.tile.kernel.is_latent:
            is_last, ahead = T.bool(True), replace(ahead, position=name(ahead.position + strip * self.width))
        sequence, group = (name(T.Select(is_last, a, b)) for a, b in ((ahead.sequence, self.tile.sequence), (ahead.group, self.tile.group)))
        first, last = name(T.Select(is_last, ahead.position, self.at + (strip + 1) * self.width)), name(t.context(sequence) - 1)
        positions = [name(T.min(first + start, last)) for start in range(0, self.width, every)]
        return group, [t.place_of(sequence, position) for position in positions]

    def place(self, position: Value) -> tuple[Value, Value]:
        return self.tile.tensors.place_of(self.tile.sequence, name(position))

    def all_seen(self, strip: Value) -> Value:
        """True if every row sees every key of the strip."""
        first = self.at + strip * self.width
        seen = first + (self.width - 1) <= self.tile.position(0)
        window = self.tile.kernel.window
        return T.And(seen, first > self.tile.position(self.tile.num_rows - 1) - window) if window else seen

    def score(self) -> None:
        """queries · keys, soft-capped, with ALiBi, masked; the highest of each row into the state."""
        tile, lanes = self.tile, self.tile.simd.lanes
        highest = local((tile.num_rows, lanes))
        for row in range(tile.num_rows):
            tile.simd.store(highest, splat(HIDDEN, lanes), (row, 0))
        with between(self.begin, self.end) as strip:
            starts = [name(strip * self.width + start) for start in range(0, self.width, lanes)]
            dots = self.multiply(strip)
            with T.If(self.all_seen(strip)):
                with T.Then():
                    self.store(starts, dots, highest, masked=False)
                with T.Else():
                    self.store(starts, dots, highest, masked=True)
        for row in range(tile.num_rows):
            self.keep_highest(row, tile.simd.load(highest, (row, 0)))

    def keep_highest(self, row: Value | int, scores: Value) -> None:
        """The highest of a row's scores into the state."""
        T.buffer_store(self.state.buffer, tree(scores, T.max), self.state.place(row))

    def multiply(self, strip: Value) -> list[list[Register]]:
        tile, t, simd, numbers, keys = self.tile, self.tile.tensors, self.tile.simd, self.numbers, self.numbers.keys
        kernel, side = tile.kernel, tile.kernel.side
        places, (group, ahead) = (self.vectors(strip), self.after(strip, simd.lanes)) if keys is None else ([], (tile.group, []))
        dots = [[Register(simd.lanes, 0, numbers.sum_dtype) for _ in range(0, self.width, simd.lanes)] for _ in range(tile.num_rows)]
        elements = simd.elements_of_line(t.k_pages)
        rows = math.gcd(kernel.key_dim // side, max(1, elements // (kernel.block_size * side)))  # that lie in one line
        with T.serial(kernel.key_dim // side // rows) as step:
            for block, offset in ahead:
                simd.prefetch(t.k_pages, (t.layer, block, group, step * rows, offset * side))
            for d in (name(step * rows + i) for i in range(rows)):
                if keys is None:
                    pages = (t.k_pages, [(t.layer, block, tile.group, d, offset * side) for block, offset in places])
                else:
                    pages = (keys, [(strip, d, start * side) for start in range(0, self.width, simd.lanes)])
                loaded = [numbers.load(pages[0], index, simd.lanes) for index in pages[1]]
                for row in range(tile.num_rows):
                    query = name(numbers.queries[numbers.turn, row, d])
                    for dot, key in zip(dots[row], loaded, strict=True):
                        dot.set(numbers.multiply_add(dot.get(), query, key))
        return dots

    def store(self, starts: list[Value], dots: list[list[Register]], highest: Buffer, *, masked: bool) -> None:
        simd = self.tile.simd
        for row, registers in enumerate(dots):
            high = simd.load(highest, (row, 0))
            for start, register in zip(starts, registers, strict=True):
                score = self.numbers.score(register.get(), row, start)
                score = self.tile.shape(score, row, self.at + start, LOG2_E, masked=masked)
                simd.store(self.numbers.scores, score, (row, start))
                high = name(T.max(high, score))
            simd.store(highest, high, (row, 0))

    def weigh(self) -> None:
        """Scores become weights relative to the row's highest, and their sum goes into the state."""
        tile, lanes, vectors = self.tile, self.tile.simd.lanes, self.width // self.tile.simd.lanes
        with T.serial(tile.num_rows) as row:
            high, total = name(splat(self.state.buffer[self.state.place(row)], lanes)), Register(lanes)
            with between(self.begin, self.end) as strip, T.If(self.all_seen(strip)):
                with T.Then():
                    self.weigh_strip(row, strip, high, total, masked=False)
                with T.Else():
                    self.weigh_strip(row, strip, high, total, masked=True)
            place = self.state.place(tile.kernel.padded(tile.num_rows) + row)
            T.buffer_store(self.state.buffer, tree(total.get(), lambda x, y: x + y), place)
            self.numbers.round_weights(row, name(self.begin * vectors), name(self.end * vectors))

    def weigh_strip(self, row: Value, strip: Value, high: Value, total: Register, *, masked: bool) -> None:
        simd, scores = self.tile.simd, self.numbers.scores
        for start in range(0, self.width, simd.lanes):
            place = (row, strip * self.width + start)
            score = simd.load(scores, place)
            weight = simd.exp2(score - high)
            if masked:
                weight = name(T.Select(score <= splat(HIDDEN / 2, simd.lanes), splat(0.0, simd.lanes), weight))
            total.set(total.get() + weight)
            self.numbers.keep_weights(weight, *place)

    def add_values(self, low: Value, high: Value) -> None:
        """weights @ values into the state, over the keys `low` to `high` of the chunk: others were perhaps never written."""
        tile, side = self.tile, self.tile.kernel.side
        columns = pieces(tile.kernel.value_dim, tile.simd.lanes)
        beside = min(4, len(columns))
        while (tile.num_rows + 1) * beside + 1 > tile.kernel.isa.num_registers and beside > 1:
            beside //= 2
        rows = name(low // side), name((high + side - 1) // side)
        for first in range(0, len(columns), beside):
            self.add_value_columns(columns[first : first + beside], *rows, high)

    def add_value_columns(self, columns: list[tuple[int, int]], low: Value, high: Value, end: Value) -> None:
        """The same for some columns, over the rows `low` to `high` of values: a row holds those of `Kernel.side` keys, up to key `end`."""
        tile, kernel, numbers = self.tile, self.tile.kernel, self.numbers
        totals = [[Register(lanes, 0, numbers.sum_dtype) for _, lanes in columns] for _ in range(tile.num_rows)]

        def add(key: Value, buffer: Buffer, *row: Value) -> None:
            values = [numbers.load(buffer, (*row, at * kernel.side), lanes) for at, lanes in columns]
            if numbers.values is None:
                values = [numbers.hide(value, key, end) for value in values]
            for i in range(tile.num_rows):
                weight = name(numbers.weights[i, key])
                for total, value in zip(totals[i], values, strict=True):
                    total.set(numbers.multiply_add(total.get(), weight, value))

        if numbers.values is None:
            self.each_value(low, high, add, asks=columns[0][0] == 0)
        else:
            with between(low, high) as key:
                add(key, numbers.values, key)
        for row in range(tile.num_rows):
            place = 2 * kernel.padded(tile.num_rows) + row * kernel.value_dim
            for total, (at, _) in zip(totals[row], columns, strict=True):
                tile.simd.store(self.state.buffer, numbers.weighted(total.get(), row), self.state.place(place + at))

    def each_value(self, low: Value, high: Value, add: Callable[..., None], *, asks: bool) -> None:
        """`add(key, pages, *place)` for rows `low` to `high` of values where they are in the pages; perhaps asks for those ahead."""
        t, simd, kernel, group = self.tile.tensors, self.tile.simd, self.tile.kernel, self.tile.group
        row_size = int(t.v_pages.shape[-1])
        width, run = self.width // kernel.side, math.gcd(kernel.block_size, self.width) // kernel.side  # run: what lies together in a page
        with between(self.begin, self.end) as strip:
            next_group, ahead = self.after(strip, run * kernel.side)
            places = local((2, len(ahead)), "int64")
            for index, next_place in enumerate(ahead):
                for which, value in enumerate(next_place):
                    T.buffer_store(places, value, [which, index])
            with T.serial(width // run) as part:
                start = name(strip * width + part * run)
                block, offset = self.place(self.at + start * kernel.side)
                next_block, next_row = name(places[0, part]), name(places[1, part] // kernel.side)
                with between(T.max(low - start, T.int64(0)), T.min(high - start, T.int64(run))) as i:
                    for line in range(0, row_size if asks else 0, simd.elements_of_line(t.v_pages)):
                        simd.prefetch(t.v_pages, (t.layer, next_block, next_group, next_row + i, line))
                    add(start + i, t.v_pages, t.layer, block, group, offset // kernel.side + i)
