"""A chunk of latents in bfloat16 for 16 rows of one token's heads, by tiles (`emit/amx.py`): what `chunk.py` does, in decoding.

Rows lie in pages as left-hand tiles want them, so scores come turned, [key, row]: 16 keys from a page times 16 queries. Their first numbers
are the values, of which neighbouring keys are brought together by pairs. Queries and weights are rounded to bfloat16; scores, totals and
sums stay float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.chunk import Strips
from cupola.targets.cpu.attention.numbers import FloatNumbers
from cupola.targets.cpu.attention.row_tile import LOG2_E, Ahead, State, Tile
from cupola.targets.cpu.attention.tile_keys import LANES, STRIP, pairs_of, steps_of, within
from cupola.targets.cpu.emit import amx as tiles
from cupola.targets.cpu.emit.loops import between
from cupola.targets.cpu.emit.simd import Buffer, Value, iota, local, name, splat, transpose

SUMS, LEFT, RIGHT = range(4), 4, (5, 6)  # tile registers
QUERIES, KEYS = 4, (5, 6)  # beside sums, for scores
WIDTH = len(SUMS) * LANES  # keys, and dimensions of values, that are worked on together, if they come in so many


@dataclass(frozen=True)
class LatentChunk:
    """A tile's own memory.

    Attributes:
        queries: int32, pairs of dimensions of bfloat16, [step, pair, row].
        turned: scores as tiles give them, [key, row].
        scores: of a chunk's keys, then their weights, [row, key].
        weights: bits of bfloat16, [strip, row, key].
        values: int32, pairs of keys, [strip, pair, dimension].
        places: blocks and offsets of a chunk's vectors of keys, and of the next one's, [which, vector].
    """

    tile: Tile
    queries: Buffer
    turned: Buffer
    scores: Buffer
    weights: Buffer
    values: Buffer
    places: Buffer

    @staticmethod
    def of(tile: Tile) -> LatentChunk:
        """Memory for `tile`, with its queries, rotated, scaled and rounded."""
        kernel, simd, steps = tile.kernel, tile.simd, steps_of(tile.kernel)
        chunk = LatentChunk(
            tile=tile,
            queries=local((steps, LANES, LANES), "int32"),
            turned=local((WIDTH, LANES)),
            scores=local((LANES, kernel.chunk)),
            weights=local((kernel.chunk // STRIP, LANES, STRIP), "uint16"),
            values=local((kernel.chunk // STRIP, LANES, WIDTH), "int32"),
            places=local((4, kernel.chunk // LANES), "int64"),
        )
        query, words = local(kernel.key_dim), local((steps, LANES, LANES), "int32")
        with T.serial(LANES) as row:
            tile.rotate_query(*tile.token_and_head(row), LOG2_E, lambda at, value: simd.store(query, value, (at,)))
            for step in range(steps):
                low, high = (simd.load(query, (2 * LANES * step + at,)) for at in (0, LANES))
                T.buffer_store(words, T.reinterpret(f"int32x{LANES}", tiles.to_bf16(low, high)), [step, row, iota(0, LANES)])
        with T.serial(steps) as step:
            for pair, rows in enumerate(transpose([name(words[step, row, iota(0, LANES)]) for row in range(LANES)])):
                T.buffer_store(chunk.queries, rows, [step, pair, iota(0, LANES)])
        return chunk

    def run(self, number: Value, state: State, ahead: Ahead) -> None:
        """Makes `state` that of chunk `number`, and asks for the rows `ahead`."""
        tile, size = self.tile, self.tile.kernel.chunk
        at, (begin, end) = name(number * size), tile.keys()
        low, high = name(T.max(begin - at, T.int64(0))), name(T.min(end - at, T.int64(size)))
        width = math.gcd(size, WIDTH)
        numbers = FloatNumbers(tile, self.queries, self.scores, self.scores, None, None, 0)
        strips = Strips(tile, numbers, state, at, width, name(low // width), name((high + width - 1) // width), ahead)
        tile.fill(state, 0, 2 * tile.kernel.padded(LANES), 0.0)
        self.find(at, ahead)
        tiles.configure()
        self.score(strips)
        strips.weigh()
        self.add_values(strips, low, high)
        tiles.release()

    def find(self, at: Value, ahead: Ahead) -> None:
        """Looks the pages of the chunk up, and of the next."""
        t, last = self.tile.tensors, name(self.tile.tensors.context(ahead.sequence) - 1)
        with T.serial(self.tile.kernel.chunk // LANES) as vector:
            here = t.place_of(self.tile.sequence, name(at + vector * LANES))
            there = t.place_of(ahead.sequence, name(T.min(ahead.position + vector * LANES, last)))
            for which, place in enumerate((*here, *there)):
                T.buffer_store(self.places, place, [which, vector])

    def row(self, vector: Value) -> tuple[Value, ...]:
        """The place in the pages where the first of a vector of keys begins."""
        t = self.tile.tensors
        return t.layer, self.places[0, vector], self.tile.group, self.places[1, vector]

    def score(self, strips: Strips) -> None:
        """keys · queries, turned, soft-capped, with ALiBi, masked; the highest of each row into the state."""
        tile, simd, vectors = self.tile, self.tile.simd, strips.width // LANES
        highest = local((LANES, LANES))
        for row in range(LANES):
            simd.store(highest, splat(-1e30, LANES), (row, 0))
        with between(strips.begin, strips.end) as strip:
            first = name(strip * vectors)
            self.multiply(first, vectors)
            for vector in range(vectors):
                found = transpose([simd.load(self.turned, (vector * LANES + i, 0)) for i in range(LANES)])
                for row, scores in enumerate(found):
                    simd.store(self.scores, scores, (row, (first + vector) * LANES))
            with T.If(strips.all_seen(strip)):
                for branch, masked in ((T.Then, False), (T.Else, True)):
                    with branch(), T.serial(LANES) as row:
                        high = simd.load(highest, (row, 0))
                        for vector in range(vectors):
                            start = name((first + vector) * LANES)
                            score = tile.shape(simd.load(self.scores, (row, start)), row, name(strips.at + start), LOG2_E, masked=masked)
                            simd.store(self.scores, score, (row, start))
                            high = name(T.max(high, score))
                        simd.store(highest, high, (row, 0))
        with T.serial(LANES) as row:
            strips.keep_highest(row, simd.load(highest, (row, 0)))

    def multiply(self, first: Value, vectors: int) -> None:
        """Scores of `vectors` vectors of keys from vector `first` on."""
        kernel, pages = self.tile.kernel, self.tile.tensors.k_pages
        for sums in SUMS[:vectors]:
            tiles.clear(sums)
        rows = [self.row(name(first + vector)) for vector in range(vectors)]
        with T.serial(steps_of(kernel)) as step:
            tiles.load(QUERIES, self.queries[step, 0, 0])
            for i, (sums, row) in enumerate(zip(SUMS, rows, strict=False)):
                tiles.load(KEYS[i % 2], pages[(*row, step * (2 * LANES))], 2 * kernel.key_dim)
                tiles.multiply_bf16(sums, KEYS[i % 2], QUERIES)
        for vector, sums in enumerate(SUMS[:vectors]):
            tiles.store(sums, self.turned[vector * LANES, 0])

    def add_values(self, strips: Strips, low: Value, high: Value) -> None:
        """weights @ values into the state, over the keys `low` to `high` of the chunk: others were perhaps never written."""
        simd, kernel, state = self.tile.simd, self.tile.kernel, strips.state
        first, last = name(strips.begin * strips.width // STRIP), name(strips.end * strips.width // STRIP)
        with between(first, last) as strip, T.serial(LANES) as row:
            halves = (simd.load(self.scores, (row, strip * STRIP + at)) for at in (0, LANES))
            T.buffer_store(self.weights, tiles.to_bf16(*halves), [strip, row, iota(0, STRIP)])
        width = math.gcd(kernel.value_dim, WIDTH)
        with T.serial(kernel.value_dim // width) as part:
            with between(first, last) as strip:
                self.pair_values(strip, name(part * width), width, low, high)
            for sums in SUMS[: width // LANES]:
                tiles.clear(sums)
            with between(first, last) as strip:
                tiles.load(LEFT, self.weights[strip, 0, 0])
                for i, sums in enumerate(SUMS[: width // LANES]):
                    tiles.load(RIGHT[i % 2], self.values[strip, 0, i * LANES], 4 * WIDTH)
                    tiles.multiply_bf16(sums, LEFT, RIGHT[i % 2])
            for i, sums in enumerate(SUMS[: width // LANES]):
                place = 2 * kernel.padded(LANES) + part * width + i * LANES
                tiles.store(sums, state.buffer[state.place(place)], 4 * kernel.value_dim)

    def pair_values(self, strip: Value, column: Value, width: int, low: Value, high: Value) -> None:
        """Brings `width` columns of a strip's values together by pairs of keys, and asks for those of the next chunk's whole rows."""
        t, simd, kernel = self.tile.tensors, self.tile.simd, self.tile.kernel
        line = simd.elements_of_line(t.v_pages)
        rest = -(-(kernel.key_dim - kernel.value_dim) // (kernel.value_dim // width))  # of which each part fetches some
        for half in range(2):
            vector = name(strip * 2 + half)
            page, ahead = self.row(vector), (t.layer, self.places[2, vector], self.tile.group, self.places[3, vector])
            bounds = [name(T.cast(bound - vector * LANES, "int32")) for bound in (low, high)]
            with T.serial(LANES // 2) as pair:
                rows = [name(page[3] + pair * 2 + i) for i in range(2)]
                masks = [T.Select(within(T.cast(pair * 2 + i, "int32"), *bounds), T.int32(0xFFFF), T.int32(0)) for i in range(2)]
                mask = name(T.broadcast(masks[0] | (masks[1] << T.int32(16)), LANES))
                for i in range(2):
                    for at in range(0, width, line):
                        simd.prefetch(t.v_pages, (*ahead[:3], T.min(ahead[3] + pair * 2 + i, kernel.block_size - 1), column + at))
                    after = kernel.value_dim + column // width * rest
                    simd.prefetch(t.v_pages, (*ahead[:3], T.min(ahead[3] + pair * 2 + i, kernel.block_size - 1), after))
                for at in range(0, width, LANES):
                    both = pairs_of(*(simd.load(t.v_pages, (*page[:3], row, column + at)) for row in rows))
                    T.buffer_store(self.values, both & mask, [strip, pair + LANES // 2 * half, iota(at, LANES)])
