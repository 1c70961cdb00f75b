"""Attention of many rows by tiles of bfloat16 (`tiles.py`), for prompts over K/V pages whose numbers bfloat16 holds.

Keys and values of a sequence are first brought into the form of right-hand tiles, in strips of 32 keys, for all rows that read them.
A task then takes a block of (token, head) rows whose heads share K/V, and goes over the keys in chunks, 32 rows at a time: scores,
weights relative to the highest score so far, weighted sums of the values (arXiv:1805.02867, arXiv:2205.14135). Queries and weights are
rounded to bfloat16; products are exact, scores, totals and sums float32. So a row's bits are not those that `attention_tile.py` gives it
in a sequence of few rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.row_tile import HIDDEN, LOG2_E, Tile
from cupola.targets.cpu.attention.shape import Kernel
from cupola.targets.cpu.attention.tile_keys import LANES, STRIP, TileKeys, steps_of
from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.loops import between
from cupola.targets.cpu.emit.simd import Buffer, Simd, Value, iota, local, name, splat

CHUNK_STRIPS = 8  # that a softmax step takes
ROWS = 2 * tiles.ROWS  # that are multiplied at once
SUMS, LEFT, RIGHT = ((0, 1), (2, 3)), (4, 5), (6, 7)  # tile registers; sums stand by left and right ones
QUERIES, SCORES = ((0, 1), (2, 3)), (4, 5)  # beside keys, which are RIGHT: queries by step, sums by tile of rows
QUERY_STEPS = len(QUERIES)  # that stay in their registers for all strips, if there are no more
LOWEST = -1e20  # the highest score of a row that has seen no key; those of hidden keys are far below


@dataclass(frozen=True)
class RowBlock:
    """A task: rows of a sequence from row `first` on, `Kernel.task_rows` of them. The sequence's rows see the keys from `begin` on."""

    keys: TileKeys
    scratch: Scratch
    sequence: Value
    group: Value
    num_tokens: Value
    first: Value
    begin: Value

    def run(self) -> None:
        """Attends and writes the results."""
        kernel = self.keys.tensors.kernel
        left = name(self.num_tokens * kernel.heads_per_group - self.first)
        count = name((T.min(left, T.int64(kernel.task_rows)) + ROWS - 1) // ROWS)
        first_strip = name(self.keys.first_strips[self.sequence] - self.begin // STRIP)
        begin, end = self.tile(self.first, kernel.task_rows).keys()
        low, high = name(begin // (STRIP * CHUNK_STRIPS)), name((end - 1) // (STRIP * CHUNK_STRIPS))
        tiles.configure()
        with between(low, high + 1) as chunk, T.serial(count) as index:
            rows = Rows(self.tile(name(self.first + index * ROWS), ROWS), self.scratch, self.keys, name(index), first_strip)
            with T.If(chunk == low), T.Then():
                rows.start()
            rows.attend(name(chunk * CHUNK_STRIPS))
            with T.If(chunk == high), T.Then():
                rows.finish()
        tiles.release()

    def tile(self, first: Value, count: int) -> Tile:
        return Tile(self.keys.tensors, count, self.sequence, self.group, self.num_tokens, first)


@dataclass(frozen=True)
class Scratch:
    """A task's own memory, in float32 but for the queries.

    Attributes:
        queries: bits of bfloat16, [32 rows, step of 32 dimensions, row, dimension].
        highest: scores, [row of the task].
        totals: of the weights, lane by lane, [row of the task, lane].
        sums: of weighted values, [row of the task, value dimension].
        scores: of 32 rows; then, in the first half of each row, weights in bfloat16, [strip, row, key].
        peaks: the highest scores of a chunk, lane by lane, [row, lane].
    """

    queries: Buffer
    highest: Buffer
    totals: Buffer
    sums: Buffer
    scores: Buffer
    peaks: Buffer

    @staticmethod
    def allocate(kernel: Kernel) -> Scratch:
        rows = kernel.task_rows
        return Scratch(
            queries=local((rows // ROWS, steps_of(kernel), ROWS, 2 * LANES), "uint16"),
            highest=local(rows),
            totals=local((rows, LANES)),
            sums=local((rows, kernel.value_dim)),
            scores=local((CHUNK_STRIPS, ROWS, STRIP)),
            peaks=local((ROWS, LANES)),
        )


@dataclass(frozen=True)
class Rows:
    """32 rows of a task, the `index`th. Strip `first_strip` of `keys` would be the sequence's first, were all of it there."""

    tile: Tile
    scratch: Scratch
    keys: TileKeys
    index: Value
    first_strip: Value

    @property
    def kernel(self) -> Kernel:
        return self.tile.kernel

    @property
    def simd(self) -> Simd:
        return self.tile.simd

    @property
    def first(self) -> Value:
        """The first row in the task's memory."""
        return self.index * ROWS

    def strip(self, strip: Value) -> tuple[Value, Value]:
        """Where the keys of a strip of the sequence stand."""
        return self.first_strip + strip, self.tile.group

    def start(self) -> None:
        """Rotated, scaled and rounded queries, and the state before the first key but for sums. A sink counts as a key of value zero."""
        kernel, simd, s, sinks = self.kernel, self.simd, self.scratch, self.tile.tensors.sinks
        query = local(2 * LANES * steps_of(kernel))
        for at in range(0, 2 * LANES * steps_of(kernel), LANES):
            simd.store(query, splat(0.0, LANES), (at,))
        with T.serial(ROWS) as row:
            token, head = self.tile.token_and_head(row)
            self.fetch(row)
            self.tile.rotate_query(token, head, LOG2_E, lambda at, value: simd.store(query, value, (at,)))
            for step in range(steps_of(kernel)):
                low, high = (simd.load(query, (2 * LANES * step + at,)) for at in (0, LANES))
                T.buffer_store(s.queries, tiles.to_bf16(low, high), [self.index, step, row, iota(0, 2 * LANES)])
            T.buffer_store(s.highest, T.float32(LOWEST) if sinks is None else sinks[head] * T.float32(LOG2_E), [self.first + row])
            simd.store(s.totals, splat(0.0 if sinks is None else 1 / LANES, LANES), (self.first + row, 0))

    def fetch(self, row: Value) -> None:
        """Brings near what `finish` writes of a row, which perhaps another core has, and what `start` reads of the row 32 later."""
        kernel, simd, t = self.kernel, self.simd, self.tile.tensors
        token, head = self.tile.token_and_head(row)
        for at in range(0, kernel.value_dim, simd.elements_of_line(t.out)):
            simd.prefetch(t.out, (token, head * kernel.value_dim + at), write=True)
        token, head = self.tile.token_and_head(row + ROWS)
        for at in range(0, kernel.key_dim, simd.elements_of_line(t.q)):
            simd.prefetch(t.q, (token, kernel.starts[0] + head * kernel.key_dim + at))

    def attend(self, at: Value) -> None:
        """Adds the keys of the chunk that begins with strip `at` of the sequence."""
        begin, end = self.tile.keys()
        first = name(T.max(begin // STRIP - at, T.int64(0)))
        last = name(T.min((end + STRIP - 1) // STRIP - at, T.int64(CHUNK_STRIPS)))
        has_sums = name(begin < at * STRIP)  # else no row has seen a key yet
        with T.If(first < last), T.Then():
            self.score(at, first, last)
            self.rescale(has_sums)
            self.add(at, first, last, has_sums)

    def score(self, at: Value, first: Value, last: Value) -> None:
        """The scores of strips `first` to `last` of the chunk. Products go one strip ahead of what waits for them."""
        for row in range(ROWS):
            self.simd.store(self.scratch.peaks, splat(HIDDEN, LANES), (row, 0))
        if steps_of(self.kernel) <= QUERY_STEPS:
            self.load_queries(range(steps_of(self.kernel)))
        self.multiply(at, first)
        with between(first, last) as strip:
            with T.If(strip + 1 < last), T.Then():
                self.multiply(at, name(strip + 1))
            position = name((at + strip) * STRIP)
            with T.If(self.all_seen(position)):
                for branch, masked in ((T.Then, False), (T.Else, True)):
                    with branch(), T.serial(ROWS) as row:
                        self.shape(row, at, strip, position, masked=masked)

    def all_seen(self, position: Value) -> Value:
        """True if every row sees every key of the strip at `position`."""
        seen = position + (STRIP - 1) <= self.tile.position(0)
        window = self.kernel.window
        return T.And(seen, position > self.tile.position(ROWS - 1) - window) if window else seen

    def load_queries(self, steps: Iterable[int]) -> None:
        """Some steps' dimensions of the queries, each in the registers for it."""
        for step in steps:
            for i, register in enumerate(QUERIES[step % QUERY_STEPS]):
                tiles.load(register, self.scratch.queries[self.index, step, LANES * i, 0])

    def multiply(self, at: Value, strip: Value) -> None:
        """queries · keys of a strip. Keys go past L1, which holds the scores."""
        place, steps = self.strip(at + strip), steps_of(self.kernel)
        for half in range(2):
            for sums in SCORES:
                tiles.clear(sums)
            for step in range(steps):
                if steps > QUERY_STEPS:
                    self.load_queries([step])
                keys = RIGHT[step % 2]
                tiles.load(keys, self.keys.keys[(*place, half, LANES * step, 0)], streamed=True)
                for queries, sums in zip(QUERIES[step % QUERY_STEPS], SCORES, strict=True):
                    tiles.multiply_bf16(sums, queries, keys)
            for i, sums in enumerate(SCORES):
                tiles.store(sums, self.scratch.scores[strip, LANES * i, LANES * half], 4 * STRIP)

    def shape(self, row: Value, at: Value, strip: Value, position: Value, *, masked: bool) -> None:
        """A row's scores with key scales and `Tile.shape`. They are logarithms to base 2."""
        simd, s = self.simd, self.scratch
        peak = simd.load(s.peaks, (row, 0))
        for start in (0, LANES):
            score = simd.load(s.scores, (strip, row, start))
            if self.keys.key_scales is not None:
                score = name(score * simd.load(self.keys.key_scales, (*self.strip(at + strip), start)))
            score = self.tile.shape(score, row, position + start, LOG2_E, masked=masked)
            simd.store(s.scores, score, (strip, row, start))
            peak = name(T.max(peak, score))
        simd.store(s.peaks, peak, (row, 0))

    def rescale(self, has_sums: Value) -> None:
        """Makes totals and sums relative to the new highest scores, if there are any yet; a sink is in the totals from the start."""
        simd, s, factors = self.simd, self.scratch, local(ROWS)
        for half in (0, LANES):
            place = (name(self.first + half),)
            old = simd.load(s.highest, place)
            new = name(T.max(old, self.reduce(s.peaks, half, T.max)))
            simd.store(s.highest, new, place)
            simd.store(factors, simd.exp((old - new) * splat(math.log(2), LANES), nonpositive=True), (half,))
        has_totals = has_sums if self.tile.tensors.sinks is None else T.bool(True)
        with T.If(has_totals), T.Then(), T.serial(ROWS) as row:
            factor, place = name(splat(factors[row], LANES)), name(self.first + row)
            simd.store(s.totals, simd.load(s.totals, (place, 0)) * factor, (place, 0))
            for start in range(0, self.kernel.value_dim, LANES):
                simd.store(s.sums, simd.load(s.sums, (place, start)) * factor, (place, start))

    def reduce(self, lanes: Buffer, first: Value | int, combine: Callable[[Value, Value], Value]) -> Value:
        """16 rows of `lanes` from `first` on, each reduced to a lane of the result."""
        vectors = [self.simd.load(lanes, (first + row, 0)) for row in range(LANES)]
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [name(combine(*(T.Shuffle([a, b], list(range(i, 2 * LANES, 2))) for i in range(2)))) for a, b in pairs]
        return vectors[0]

    def add(self, at: Value, first: Value, last: Value, has_sums: Value) -> None:
        """Weights, and the values that they weigh, on top of the sums if there are any yet. Weights go a strip ahead of the products."""
        s, size = self.scratch, self.kernel.value_dim
        for start in range(0, size, 2 * LANES):
            places = {sums: (self.first + LANES * i, start + LANES * j) for i, pair in enumerate(SUMS) for j, sums in enumerate(pair)}
            with T.If(has_sums):
                with T.Then():
                    for sums, place in places.items():
                        tiles.load(sums, s.sums[place], 4 * size)
                with T.Else():
                    for sums in places:
                        tiles.clear(sums)
            if start == 0:
                self.weigh(at, first)
            with between(first, last) as strip:
                if start == 0:
                    with T.If(strip + 1 < last), T.Then():
                        self.weigh(at, name(strip + 1))
                for half in range(2):
                    tiles.load(LEFT[half], s.scores[strip, LANES * half, 0], 4 * STRIP)
                    values = self.keys.values[(*self.strip(at + strip), 0, start + LANES * half)]
                    tiles.load(RIGHT[half], values, 4 * size, streamed=True)
                _multiply()
            for sums, place in places.items():
                tiles.store(sums, s.sums[place], 4 * size)

    def weigh(self, at: Value, strip: Value) -> None:
        """Scores of a strip become weights, which are added to the totals."""
        simd, s = self.simd, self.scratch
        with T.serial(ROWS) as row:
            place = name(self.first + row)
            high = name(splat(s.highest[place], LANES))
            weights = [simd.exp2_for_bf16(simd.load(s.scores, (strip, row, start)) - high) for start in (0, LANES)]
            simd.store(s.totals, simd.load(s.totals, (place, 0)) + (weights[0] + weights[1]), (place, 0))
            if self.keys.value_scales is not None:
                scales = [simd.load(self.keys.value_scales, (*self.strip(at + strip), start)) for start in (0, LANES)]
                weights = [weight * scale for weight, scale in zip(weights, scales, strict=True)]
            simd.store(s.scores, T.reinterpret(f"float32x{LANES}", tiles.to_bf16(*weights)), (strip, row, 0))

    def finish(self) -> None:
        """Divides by the totals and writes the rows."""
        kernel, simd, s, inverses = self.kernel, self.simd, self.scratch, local(ROWS)
        for half in (0, LANES):
            total = self.reduce(s.totals, name(self.first + half), lambda x, y: x + y)
            simd.store(inverses, splat(1.0, LANES) / total, (half,))
        rows = name(self.tile.num_tokens * kernel.heads_per_group)
        with T.serial(ROWS) as row, T.If(self.tile.first + row < rows), T.Then():
            token, head = self.tile.token_and_head(row)
            place, inverse = name(self.first + row), name(splat(inverses[row], LANES))
            for start in range(0, kernel.value_dim, LANES):
                simd.store(self.tile.tensors.out, simd.load(s.sums, (place, start)) * inverse, (token, head * kernel.value_dim + start))


def _multiply() -> None:
    """Adds the products of both left-hand tiles with both right-hand ones to their sums."""
    for left, row_sums in zip(LEFT, SUMS, strict=True):
        for right, sums in zip(RIGHT, row_sums, strict=True):
            tiles.multiply_bf16(sums, left, right)
