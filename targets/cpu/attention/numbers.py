"""How attention's tiles multiply the numbers of the pages: a float at a time, or codes of int8 and bfloat16 by pairs.

In pages of int8 two neighbours lie side by side, two dimensions of a key or two keys' values in a dimension, because that is how
instructions multiply 16 bits: products of a pair are summed in int32. So queries and weights are rounded to 16 bits, in steps of
their row's largest, and sums are exact: as wide as the codes allow, which is 2^-16 of the largest and far below what the codes of
8 bits cost. Pairs of bfloat16 lie alike where an instruction multiplies them: queries and weights are rounded to it, sums are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from tvm.tirx.script import builder as T

from cupola.targets.cpu.attention.row_tile import LOG2_E, Ahead, Tile
from cupola.targets.cpu.attention.shape import Kernel
from cupola.targets.cpu.emit.dot import dot_bf16, dot_pairs
from cupola.targets.cpu.emit.loops import between
from cupola.targets.cpu.emit.simd import Buffer, Register, Simd, Value, iota, lanes_of, local, name, pieces, splat, tree

CODES = 127  # the largest magnitude of a code of int8


@dataclass(frozen=True)
class Numbers(ABC):
    """A tile's own memory, or that of tiles which take turns, and what is done to numbers of the pages with what stands there. `side` is
    `Kernel.side`.

    Attributes:
        queries: rotated and scaled, as they are multiplied, [tile, row, key_dim / side].
        scores: of a chunk's keys, then their weights, [row, key].
        weights: as they are multiplied, [row, keys / side].
        keys, values: of a chunk, copied out of the pages as they are multiplied, where that is done: [strip, key_dim / side, keys of a
            strip · side] and [keys / side, value_dim · side].
        turn: which of the tiles' queries are meant.
    """

    sum_dtype: ClassVar[str]

    tile: Tile
    queries: Buffer
    scores: Buffer
    weights: Buffer
    keys: Buffer | None
    values: Buffer | None
    turn: Value | int

    @staticmethod
    @abstractmethod
    def allocate(tile: Tile, num_tiles: int = 1) -> Numbers:
        """Memory for `tile`; of several like it, for what is copied out of the pages for all, too."""

    @abstractmethod
    def load_queries(self) -> None:
        """Makes the tile's queries."""

    def keep_weights(self, weights: Value, row: Value, key: Value) -> None:
        """Stores a row's weights of a vector of keys, for `round_weights`."""
        self.simd.store(self.scores, weights, (row, key))

    def hide(self, values: Value, row: Value, end: Value) -> Value:
        """A vector of a row of values, changed so that keys from `end` on add nothing where their weights are 0."""
        return values

    def of(self, tile: Tile, turn: Value) -> Self:
        """The same memory, for another of the tiles."""
        return replace(self, tile=tile, turn=turn)

    @abstractmethod
    def load(self, buffer: Buffer, index: tuple[Value | int, ...], lanes: int) -> Value:
        """`lanes` numbers, or pairs, from `index` on."""

    @abstractmethod
    def multiply_add(self, total: Value, factor: Value, numbers: Value) -> Value:
        """`total` plus a query's or weight's number, or pair, times those."""

    @abstractmethod
    def put(self, buffer: Buffer, index: tuple[Value | int, ...], numbers: Value) -> None:
        """Stores what `load` gave, for another `load` from `buffer`."""

    @abstractmethod
    def gather_scales(self, at: Value, end: Value, ahead: Ahead) -> None:
        """Copies the scales of the chunk at `at` together and asks for those of the next, if there are any."""

    @abstractmethod
    def score(self, dot: Value, row: int, key: Value) -> Value:
        """A row's scores of a vector of keys from sums of products."""

    @abstractmethod
    def round_weights(self, row: Value, first: Value, last: Value) -> None:
        """Makes `weights` of a row's from vector `first` to `last` of the chunk's; those of keys that it does not see are 0."""

    @abstractmethod
    def weighted(self, total: Value, row: int) -> Value:
        """A row's weighted values from sums of products."""

    @property
    def simd(self) -> Simd:
        return self.tile.simd


class FloatNumbers(Numbers):
    """Numbers of any float type, in float32."""

    sum_dtype: ClassVar[str] = "float32"

    @staticmethod
    def allocate(tile: Tile, num_tiles: int = 1) -> FloatNumbers:
        kernel, rows = tile.kernel, tile.num_rows
        queries, scores = local((num_tiles, rows, kernel.key_dim)), local((rows, kernel.chunk))
        return FloatNumbers(tile, queries, scores, scores, *copies_of(kernel, rows, num_tiles, "float32"), 0)

    def load_queries(self) -> None:
        tile, simd = self.tile, self.simd
        with T.serial(tile.num_rows) as row:
            token, head = tile.token_and_head(row)
            tile.rotate_query(token, head, LOG2_E, lambda at, value: simd.store(self.queries, value, (self.turn, row, at)))

    def load(self, buffer: Buffer, index: tuple[Value | int, ...], lanes: int) -> Value:
        return self.simd.load(buffer, index, lanes)

    def multiply_add(self, total: Value, factor: Value, numbers: Value) -> Value:
        return self.simd.fma(splat(factor, lanes_of(total)), numbers, total)

    def put(self, buffer: Buffer, index: tuple[Value | int, ...], numbers: Value) -> None:
        self.simd.store(buffer, numbers, index)

    def gather_scales(self, at: Value, end: Value, ahead: Ahead) -> None:
        pass

    def score(self, dot: Value, row: int, key: Value) -> Value:
        return dot

    def round_weights(self, row: Value, first: Value, last: Value) -> None:
        pass

    def weighted(self, total: Value, row: int) -> Value:
        return total


@dataclass(frozen=True)
class LatentCodes(FloatNumbers):
    """Codes of int8 that are keys and values, in float32. `scales` are a chunk's, [key]."""

    scales: Buffer

    @staticmethod
    def allocate(tile: Tile, num_tiles: int = 1) -> LatentCodes:
        return LatentCodes(**vars(FloatNumbers.allocate(tile, num_tiles)), scales=local(tile.kernel.chunk))

    def gather_scales(self, at: Value, end: Value, ahead: Ahead) -> None:
        _gather(self.tile, [(self.tile.tensors.k_scales, self.scales)], at, end, ahead)

    def score(self, dot: Value, row: int, key: Value) -> Value:
        return dot * self.simd.load(self.scales, (key,))

    def round_weights(self, row: Value, first: Value, last: Value) -> None:
        simd, lanes = self.simd, self.simd.lanes
        with between(first, last) as vector:
            weight, scale = simd.load(self.scores, (row, vector * lanes)), simd.load(self.scales, (vector * lanes,))
            simd.store(self.scores, _times_seen(weight, scale), (row, vector * lanes))


class Bf16Pairs(FloatNumbers):
    """Pairs of bfloat16, times pairs of it that stand in an int32."""

    @staticmethod
    def allocate(tile: Tile, num_tiles: int = 1) -> Bf16Pairs:
        kernel, rows = tile.kernel, tile.num_rows
        queries, weights = local((num_tiles, rows, kernel.key_dim // 2), "int32"), local((rows, kernel.chunk // 2), "int32")
        return Bf16Pairs(tile, queries, local((rows, kernel.chunk)), weights, *copies_of(kernel, rows, num_tiles, "uint16"), 0)

    def load_queries(self) -> None:
        tile, simd, query = self.tile, self.simd, local(self.tile.kernel.key_dim)
        with T.serial(tile.num_rows) as row:
            tile.rotate_query(*tile.token_and_head(row), LOG2_E, lambda at, value: simd.store(query, value, (at,)))
            for start, lanes in pieces(tile.kernel.key_dim, simd.lanes):
                self.store_pairs(simd.load(query, (start,), lanes), self.queries, (self.turn, row), start // 2)

    def store_pairs(self, values: Value, buffer: Buffer, row: tuple[Value | int, ...], start: Value | int) -> None:
        lanes = lanes_of(values) // 2
        words = T.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", self.simd.bf16_bits(values))
        T.buffer_store(buffer, words, [*row, iota(start, lanes)])

    def load(self, buffer: Buffer, index: tuple[Value | int, ...], lanes: int) -> Value:
        *outer, start = index
        return name(T.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", buffer[(*outer, iota(start, 2 * lanes))]))

    def multiply_add(self, total: Value, factor: Value, numbers: Value) -> Value:
        return dot_bf16(total, numbers, factor)

    def put(self, buffer: Buffer, index: tuple[Value | int, ...], numbers: Value) -> None:
        (*outer, start), lanes = index, 2 * lanes_of(numbers)
        T.buffer_store(buffer, T.reinterpret(f"uint16x{lanes}", numbers), [*outer, iota(start, lanes)])

    def keep_weights(self, weights: Value, row: Value, key: Value) -> None:
        self.store_pairs(weights, self.weights, (row,), key // 2)

    def hide(self, values: Value, row: Value, end: Value) -> Value:
        """Where no value was written yet there may be NaN, which 0 does not hide."""
        mask, lanes = T.Select(row * 2 + 1 < end, T.int32(-1), T.int32(0xFFFF)), lanes_of(values)
        return name(values & (mask if lanes == 1 else T.broadcast(mask, lanes)))


def copies_of(kernel: Kernel, rows: int, num_tiles: int, dtype: str) -> tuple[Buffer | None, Buffer | None]:
    """Memory for the keys and values of a chunk that are copied out of the pages: of several tiles of `rows` rows both."""
    strip, side = kernel.strip(rows), kernel.side
    keys, values = (kernel.chunk // strip, kernel.key_dim // side, strip * side), (kernel.chunk // side, kernel.value_dim * side)
    copies_keys, copies_values = kernel.copies_keys or num_tiles > 1, num_tiles > 1
    return local(keys, dtype) if copies_keys else None, local(values, dtype) if copies_values else None


def _gather(tile: Tile, pools: list[tuple[Buffer | None, Buffer]], at: Value, end: Value, ahead: Ahead) -> None:
    """Copies the scales of the chunk at `at` together and asks for those of the next."""
    t, kernel, simd, group = tile.tensors, tile.kernel, tile.simd, tile.group
    lanes, last = simd.lanes if kernel.keys_in_vectors else 1, name(t.context(ahead.sequence) - 1)
    with T.serial(kernel.chunk // lanes) as i:
        position = name(at + i * lanes if kernel.keys_in_vectors else T.min(at + i, end - 1))
        places = t.place_of(tile.sequence, position), t.place_of(ahead.sequence, name(T.min(ahead.position + i * lanes, last)))
        for pool, scales in pools:
            (block, offset), (next_block, next_offset) = places
            simd.store(scales, simd.load(pool, (t.layer, block, group, offset), lanes), (i * lanes,))
            simd.prefetch(pool, (t.layer, next_block, ahead.group, next_offset))


def _times_seen(weight: Value, scale: Value) -> Value:
    """Weights times scales; a key unseen, whose weight is 0, may have any scale."""
    zero = splat(0.0, lanes_of(weight))
    return name(T.Select(weight > zero, weight * scale, zero))


@dataclass(frozen=True)
class PairNumbers(Numbers):
    """Pairs of codes of int8, times pairs of int16 that stand in an int32.

    Attributes:
        query_steps: what 1 stands for in a row's queries, [tile, row].
        weight_steps: what 1 stands for in a row's weights, [row].
        key_scales, value_scales: of a chunk, [key].
    """

    sum_dtype: ClassVar[str] = "int32"

    query_steps: Buffer
    weight_steps: Buffer
    key_scales: Buffer
    value_scales: Buffer

    @staticmethod
    def allocate(tile: Tile, num_tiles: int = 1) -> PairNumbers:
        kernel, rows = tile.kernel, tile.num_rows
        queries, weights = local((num_tiles, rows, kernel.key_dim // 2), "int32"), local((rows, kernel.chunk // 2), "int32")
        steps, scales = (local((num_tiles, rows)), local(rows)), [local(kernel.chunk) for _ in range(2)]
        copies = copies_of(kernel, rows, num_tiles, "int16")
        return PairNumbers(tile, queries, local((rows, kernel.chunk)), weights, *copies, 0, *steps, *scales)

    def load_queries(self) -> None:
        with T.serial(self.tile.num_rows) as row:
            self.load_query(row)

    def load_query(self, row: Value) -> None:
        """A row's query, rotated, scaled and rounded."""
        kernel, simd = self.tile.kernel, self.simd
        query = local(kernel.key_dim)
        self.tile.rotate_query(*self.tile.token_and_head(row), LOG2_E, lambda at, value: simd.store(query, value, (at,)))
        inverse = self.choose_step(simd.largest(query, kernel.key_dim), kernel.key_dim, self.query_steps, (self.turn, row))
        for start, lanes in pieces(kernel.key_dim, simd.lanes):
            self.store_pairs(simd.load(query, (start,), lanes) * splat(inverse, lanes), self.queries, (self.turn, row), start // 2)

    def choose_step(self, largest: Value, count: int, steps: Buffer, row: tuple[Value | int, ...]) -> Value:
        """Stores the step of a row with that largest magnitude, of whose numbers `count` are summed, and gives its inverse."""
        limit = min(2**15 - 1, (2**31 - 1) // (CODES * count))
        T.buffer_store(steps, largest * T.float32(1 / limit), list(row))
        return name(T.Select(largest > T.float32(0), T.float32(limit) / largest, T.float32(0)))

    def store_pairs(self, values: Value, buffer: Buffer, row: tuple[Value | int, ...], start: Value | int) -> None:
        lanes = lanes_of(values) // 2
        words = T.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", self.simd.rounded(values, "int16"))
        T.buffer_store(buffer, words, [*row, iota(start, lanes)])

    def load(self, buffer: Buffer, index: tuple[Value | int, ...], lanes: int) -> Value:
        *outer, start = index
        return name(T.cast(buffer[(*outer, iota(start, 2 * lanes))], f"int16x{2 * lanes}"))

    def multiply_add(self, total: Value, factor: Value, numbers: Value) -> Value:
        return dot_pairs(self.tile.kernel.isa, total, numbers, factor)

    def put(self, buffer: Buffer, index: tuple[Value | int, ...], numbers: Value) -> None:
        *outer, start = index
        T.buffer_store(buffer, numbers, [*outer, iota(start, lanes_of(numbers))])

    def gather_scales(self, at: Value, end: Value, ahead: Ahead) -> None:
        t = self.tile.tensors
        _gather(self.tile, [(t.k_scales, self.key_scales), (t.v_scales, self.value_scales)], at, end, ahead)

    def score(self, dot: Value, row: int, key: Value) -> Value:
        lanes = lanes_of(dot)
        return T.cast(dot, f"float32x{lanes}") * splat(self.query_steps[self.turn, row], lanes) * self.simd.load(self.key_scales, (key,))

    def round_weights(self, row: Value, first: Value, last: Value) -> None:
        simd, lanes, kernel, largest = self.simd, self.simd.lanes, self.tile.kernel, Register(self.simd.lanes)
        with between(first, last) as vector:
            weight, scale = simd.load(self.scores, (row, vector * lanes)), simd.load(self.value_scales, (vector * lanes,))
            weight = _times_seen(weight, scale)
            simd.store(self.scores, weight, (row, vector * lanes))
            largest.set(T.max(largest.get(), weight))
        inverse = self.choose_step(tree(largest.get(), T.max), kernel.chunk, self.weight_steps, (row,))
        with between(first, last) as vector:
            weight = simd.load(self.scores, (row, vector * lanes)) * splat(inverse, lanes)
            self.store_pairs(weight, self.weights, (row,), vector * (lanes // 2))

    def weighted(self, total: Value, row: int) -> Value:
        lanes = lanes_of(total)
        return T.cast(total, f"float32x{lanes}" if lanes > 1 else "float32") * splat(self.weight_steps[row], lanes)
