"""Products of matrix units in the registers of a warp: rows of x, parts of the weight's tiles, and sums.

`matrix.cuh` says which lane has what of the instructions' matrices. The weight is the first one and x, turned, the second one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.emit import WARP, call, from_lane, keep, load, registers, shared, synchronize
from cupola.targets.gpu.linear.layer import Layer
from cupola.targets.gpu.linear.tiles import COLUMNS, SLICE, STEP, Tiles

WARPS = 8  # of a block
SHARES = WARPS  # of the columns of x, whose sums are added up in order
GROUP = 8  # rows of x that an instruction multiplies
MOST_FEW = 16  # rows that are rounded as they are read: more of them are rounded to memory first


def num_chunks(layer: Layer) -> int:
    """Chunks of 64 columns in x. Stored weights may have more."""
    return -(-layer.width // COLUMNS)


@dataclass(frozen=True)
class Chunk:
    """A chunk of columns, which may lie behind the last one of a share; all lanes of a warp have the same."""

    index: Value
    conditions: list[Value]

    @contextmanager
    def if_there(self, *others: Value) -> Iterator[None]:
        """Runs its body if there is such a chunk, and the other conditions hold."""
        conditions = [*self.conditions, *others]
        if not conditions:
            yield
            return
        with T.If(tvm.tirx.all(*conditions)), T.Then():
            yield


@dataclass(frozen=True)
class Rows:
    """Rows of x that a block multiplies, in groups of 8, as the second matrix of instructions. A lane has a row of each group, and of every
    slice of 32 columns a quarter.

    Attributes:
        first: the first row.
        groups: of rows.
        share: the warp's, of the columns.
        place: the lane's row in a group.
        part: the lane's quarter of a slice.
        factors: of each group the lane's row's, by RMSNorm (arXiv:1910.07467); empty where there is no norm.
    """

    layer: Layer
    count: Value
    x: Buffer
    norm: Buffer | None
    first: Value
    groups: int
    share: Value
    place: Value
    part: Value
    factors: list[Value]

    @staticmethod
    def of(layer: Layer, count: Value, x: Buffer, norm: Buffer | None, first: Value, groups: int, thread: Value) -> Rows:
        """Those from `first` on; the block finds their factors together."""
        lane = thread % WARP
        rows = Rows(layer, count, x, norm, first, groups, thread // WARP, lane // 4, lane % 4, [])
        if norm is not None:
            rows.factors.extend(rows._find_factors())
        return rows

    def row(self, group: int) -> Value:
        """The lane's row in a group; there may be none such."""
        return self.first + T.int64(group * GROUP) + self.place

    @contextmanager
    def chunks(self, at_once: int = 1) -> Iterator[list[Chunk]]:
        """A loop over the chunks of 64 columns in the warp's share, so many at once."""
        count = num_chunks(self.layer)
        per_share = -(-count // SHARES)
        at_once = min(at_once, per_share)
        with T.serial(-(-per_share // at_once)) as i:
            found = []
            for j in range(at_once):
                step = T.cast(i, "int64") * at_once + T.int64(j)
                index, conditions = self.share * per_share + step, []
                if per_share % at_once:
                    conditions.append(step < T.int64(per_share))
                if count % SHARES:
                    conditions.append(index < T.int64(count))
                found.append(Chunk(index, conditions))
            yield found

    def _column(self, chunk: Value, piece: int) -> Value:
        """The first of the lane's eight columns in a slice; there may be none such."""
        return chunk * COLUMNS + T.int64(piece * SLICE) + self.part * 8

    def _values(self, buffer: Buffer, index: tuple[Value, ...], chunk: Value, piece: int) -> Buffer:
        """The lane's eight columns of a slice in registers. Instead of those that there are not it has others."""
        values, width, first = registers(8), self.layer.width, self._column(chunk, piece)
        if width % 8:
            for j in range(8):
                T.buffer_store(values, load(buffer, *index, T.min(first + T.int64(j), T.int64(width - 1))), [j])
            return values
        first = first if width % COLUMNS == 0 else T.min(first // 8, T.int64(width // 8 - 1)) * 8
        raw, lanes = registers(8, str(buffer.dtype)), 4 if str(buffer.dtype) == "float32" else 8
        for j in range(0, 8, lanes):
            T.buffer_store(raw, buffer[(*index, T.ramp(first + T.int64(j), 1, lanes))], [T.ramp(j, 1, lanes)])
        for j in range(8):
            T.buffer_store(values, T.cast(raw[j], "float32"), [j])
        return values

    def _x(self, group: int, chunk: Value, piece: int) -> Buffer:
        """The lane's eight of x: 0 where there is no column, for weights have padding; of a row that there is not, the last one's."""
        values, width = self._values(self.x, (T.min(self.row(group), self.count - T.int64(1)),), chunk, piece), self.layer.width
        if width % COLUMNS:
            for j in range(8):
                is_there = self._column(chunk, piece) + T.int64(j) < T.int64(width)
                T.buffer_store(values, T.Select(is_there, values[j], T.float32(0)), [j])
        return values

    def words(self, chunk: Value, piece: int) -> list[Buffer]:
        """Of each group the lane's eight of x in a slice, normalized and rounded, in four words: two for each step."""
        norms, found = self._values(self.norm, (), chunk, piece) if self.norm is not None else None, []
        kind = "bfloat16" if self.layer.weight.dtype == "bfloat16" else "float16"
        for group in range(self.groups):
            values, words = self._x(group, chunk, piece), registers(4, "int32")
            if norms is not None:
                for j in range(8):
                    T.buffer_store(values, values[j] * self.factors[group] * norms[j], [j])
            for j in range(4):
                T.buffer_store(words, T.call_extern("int32", f"pair_{kind}", values[2 * j], values[2 * j + 1]), [j])
            found.append(words)
        return found

    def _find_factors(self) -> list[Value]:
        """Every lane adds up squares of its parts of its rows; then lanes of a row, then warps, in order."""
        held, sums = registers(self.groups), shared(SHARES * self.groups * GROUP)
        for group in range(self.groups):
            T.buffer_store(held, T.float32(0), [group])
        with self.chunks() as (chunk,), chunk.if_there():
            for group in range(self.groups):
                for piece in (0, 1):
                    values = self._x(group, chunk.index, piece)
                    for j in range(8):
                        T.buffer_store(held, held[group] + values[j] * values[j], [group])
        factors = []
        for group in range(self.groups):
            for distance in (2, 1):
                T.buffer_store(held, held[group] + from_lane(held[group], distance), [group])
            with T.If(self.part == T.int64(0)), T.Then():
                T.buffer_store(sums, held[group], [(self.share * self.groups + T.int64(group)) * GROUP + self.place])
        synchronize()
        for group in range(self.groups):
            T.buffer_store(held, T.float32(0), [group])
            for share in range(SHARES):
                T.buffer_store(held, held[group] + sums[T.int64((share * self.groups + group) * GROUP) + self.place], [group])
            mean = held[group] * T.float32(1 / self.layer.width)
            factors.append(keep(T.float32(1) / T.sqrt(mean + T.float32(self.layer.epsilon))))
        return factors


class Sums:
    """The sums of a warp's unit for groups of rows of x, as instructions have them."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.held = registers(2 * groups * 4)
        self.clear()

    def clear(self) -> None:
        """To zeros."""
        for i in range(2 * self.groups * 4):
            T.buffer_store(self.held, T.float32(0), [i])

    def multiply(self, weight: Tiles, tile: int, group: int, a: Buffer, a_start: int, b: Buffer, b_start: int) -> None:
        """Adds the product of a step."""
        at = self.place(tile, group)
        addresses = (T.address_of(buffer[i]) for buffer, i in ((self.held, at), (a, a_start), (b, b_start)))
        call(f"multiply_{weight.dtype}", *addresses)

    def place(self, tile: int, group: int) -> int:
        """Where the four of a tile and a group begin."""
        return (tile * self.groups + group) * 4


@dataclass(frozen=True)
class Part:
    """A lane's part of a tile, in registers: its words, and for codes the words of scales and mins of both slices."""

    weight: Tiles
    words: Buffer
    scales: Buffer | None
    mins: Buffer | None

    @staticmethod
    def registers(weight: Tiles) -> Part:
        """Not yet read."""
        scales = [registers(2, "int32") if held is not None else None for held in (weight.scales, weight.mins)]
        return Part(weight, registers(4 * weight.loads, "int32"), *scales)

    def read(self, tile: Value, chunk: Value, lane: Value) -> None:
        """From the weight."""
        weight = self.weight
        for i in range(weight.loads):
            T.buffer_store(self.words, weight.words[tile, chunk, i, lane, T.ramp(0, 1, 4)], [T.ramp(4 * i, 1, 4)])
        for into, held in ((self.scales, weight.scales), (self.mins, weight.mins)):
            for piece in (0, 1):
                if into is not None and held is not None:
                    T.buffer_store(into, held[tile, weight.group(chunk, piece), lane // 4], [piece])

    def fragments(self, piece: int) -> tuple[Buffer, int]:
        """As `Tiles.fragments`."""
        return self.weight.fragments(self.words, piece, *(held[piece] if held is not None else None for held in (self.scales, self.mins)))


def multiply(sums: Sums, pair: Sequence[Part], piece: int, xs: Sequence[Buffer]) -> None:
    """Adds the products of a slice of a unit's two tiles and groups of rows of x."""
    for tile, part in enumerate(pair):
        words, start = part.fragments(piece)
        for step in range(SLICE // STEP):
            for group, x in enumerate(xs):
                sums.multiply(part.weight, tile, group, words, start + 4 * step, x, 2 * step)
