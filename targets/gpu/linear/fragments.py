"""Products of matrix units in the registers of a warp: rows of x, parts of the weight's tiles, and sums.

`units.py` says which lane has what of the instructions' matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import tvm
from tvm.tirx.script import builder as T

from cupola.targets.emit import Buffer, Value
from cupola.targets.gpu.emit import WARP, call, from_lane, gpu, keep, load, registers, shared, synchronize
from cupola.targets.gpu.linear.layer import Layer
from cupola.targets.gpu.linear.tiles import COLUMNS, SLICE, STEP, Tiles
from cupola.targets.gpu.units import PARTS, MatrixUnit

WARPS = 8  # of a block
SHARES = WARPS  # of the columns of x, whose sums are added up in order
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
    """Rows of x that a block multiplies, in groups of as many as an instruction does. A lane has a row of each group, and of every slice of
    32 columns a quarter, or all four.

    Attributes:
        first: the first row.
        groups: of rows.
        share: the warp's, of the columns.
        lane: of the warp.
        place, part: the lane's, of the matrix unit: its row in a group, and its number among those that have it.
        factors: of each group the lane's row's, by RMSNorm (arXiv:1910.07467); empty where there is no norm.
    """

    layer: Layer
    count: Value
    x: Buffer
    norm: Buffer | None
    first: Value
    groups: int
    share: Value
    lane: Value
    place: Value
    part: Value
    factors: list[Value]

    @staticmethod
    def of(layer: Layer, count: Value, x: Buffer, norm: Buffer | None, first: Value, groups: int, thread: Value) -> Rows:
        """Those from `first` on; the block finds their factors together."""
        unit = gpu().matrix
        lane = thread % unit.lanes
        rows = Rows(layer, count, x, norm, first, groups, thread // unit.lanes, lane, unit.place(lane), unit.part(lane), [])
        if norm is not None:
            rows.factors.extend(rows._find_factors())
        return rows

    def row(self, group: int) -> Value:
        """The lane's row in a group; there may be none such."""
        return self.first + T.int64(group * self.unit.rows) + self.place

    @property
    def unit(self) -> MatrixUnit:
        """The matrix unit."""
        return gpu().matrix

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

    def _column(self, chunk: Value, piece: int, part: Value) -> Value:
        """The first of the eight columns of a part of a slice; there may be none such."""
        return chunk * COLUMNS + T.int64(piece * SLICE) + part * 8

    def _values(self, buffer: Buffer, index: tuple[Value, ...], chunk: Value, piece: int, part: Value) -> Buffer:
        """The eight columns of a part of a slice in registers. Instead of those that there are not it has others."""
        values, width, first = registers(8), self.layer.width, self._column(chunk, piece, part)
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

    def _x(self, group: int, chunk: Value, piece: int, part: Value) -> Buffer:
        """Eight of x: 0 where there is no column, for weights have padding; of a row that there is not, the last one's."""
        row, width = T.min(self.row(group), self.count - T.int64(1)), self.layer.width
        values = self._values(self.x, (row,), chunk, piece, part)
        if width % COLUMNS:
            for j in range(8):
                is_there = self._column(chunk, piece, part) + T.int64(j) < T.int64(width)
                T.buffer_store(values, T.Select(is_there, values[j], T.float32(0)), [j])
        return values

    def words(self, chunk: Value, piece: int) -> list[Buffer]:
        """Of each group the lane's parts of x in a slice, normalized and rounded, in four words each: two for each step."""
        kind, parts = "bfloat16" if self.layer.weight.dtype == "bfloat16" else "float16", self.unit.parts(self.lane)
        norms = [self._values(self.norm, (), chunk, piece, part) if self.norm is not None else None for part in parts]
        found = []
        for group in range(self.groups):
            held = [self._x(group, chunk, piece, part) for part in parts]
            words = registers(4 * len(parts), "int32")
            for i, (values, scale) in enumerate(zip(held, norms, strict=True)):
                if scale is not None:
                    for j in range(8):
                        T.buffer_store(values, values[j] * self.factors[group] * scale[j], [j])
                for j in range(4):
                    T.buffer_store(words, T.call_extern("int32", f"pair_{kind}", values[2 * j], values[2 * j + 1]), [4 * i + j])
            found.append(words)
        return found

    def _find_factors(self) -> list[Value]:
        """Every lane adds up squares of its parts of its rows; then lanes of a row, then warps, in order."""
        held, rows = registers(self.groups), self.unit.rows
        sums = shared(SHARES * self.groups * rows)
        for group in range(self.groups):
            T.buffer_store(held, T.float32(0), [group])
        with self.chunks() as (chunk,), chunk.if_there():
            for group in range(self.groups):
                for piece, part in itertools.product((0, 1), self.unit.parts(self.lane)):
                    values = self._x(group, chunk.index, piece, part)
                    for j in range(8):
                        T.buffer_store(held, held[group] + values[j] * values[j], [group])
        factors = []
        for group in range(self.groups):
            self._add_up(held, group)
            with T.If(self.part == T.int64(0)), T.Then():
                T.buffer_store(sums, held[group], [(self.share * self.groups + T.int64(group)) * rows + self.place])
        synchronize()
        for group in range(self.groups):
            T.buffer_store(held, T.float32(0), [group])
            for share in range(SHARES):
                T.buffer_store(held, held[group] + sums[T.int64((share * self.groups + group) * rows) + self.place], [group])
            mean = held[group] * T.float32(1 / self.layer.width)
            factors.append(keep(T.float32(1) / T.sqrt(mean + T.float32(self.layer.epsilon))))
        return factors

    def _add_up(self, held: Buffer, i: int) -> None:
        """Adds up a number over the lanes that share a row; the first of them gets it."""
        if self.unit.has_whole_rows:
            return
        if self.unit.rows != WARP // PARTS:
            T.buffer_store(held, T.call_extern("float32", "sum_of_row", held[i]), [i])
            return
        for distance in (2, 1):
            T.buffer_store(held, held[i] + from_lane(held[i], distance), [i])


class Sums:
    """The sums of a warp's unit for groups of rows of x, as instructions have them."""

    def __init__(self, groups: int) -> None:
        self.groups, self.count = groups, 2 * groups * gpu().matrix.sums
        self.held = registers(self.count)
        self.clear()

    def clear(self) -> None:
        """To zeros."""
        for i in range(self.count):
            T.buffer_store(self.held, T.float32(0), [i])

    def place(self, sixteen: int, group: int) -> int:
        """The index of the first one for 16 rows of the weight and a group."""
        return (sixteen * self.groups + group) * gpu().matrix.sums

    def address(self, sixteen: int, group: int) -> Value:
        """The address of the same."""
        return T.address_of(self.held[self.place(sixteen, group)])


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
        count = PARTS if gpu().matrix.has_whole_rows else 1
        return Part(weight, registers(count * 4 * weight.loads, "int32"), *scales)

    def read(self, tile: Value, chunk: Value, lane: Value) -> None:
        """From the weight."""
        weight, unit = self.weight, gpu().matrix
        for part, at in enumerate(unit.stored_lanes(lane)):
            for i in range(weight.loads):
                T.buffer_store(self.words, weight.words[tile, chunk, i, at, T.ramp(0, 1, 4)], [T.ramp(4 * (weight.loads * part + i), 1, 4)])
        for into, held in ((self.scales, weight.scales), (self.mins, weight.mins)):
            for piece in (0, 1):
                if into is not None and held is not None:
                    T.buffer_store(into, held[tile, weight.group(chunk, piece), unit.place(lane)], [piece])

    def fragments(self, piece: int) -> tuple[Buffer, int]:
        """As `Tiles.fragments`."""
        return self.weight.fragments(self.words, piece, *(held[piece] if held is not None else None for held in (self.scales, self.mins)))


def multiply(sums: Sums, tiles: Sequence[Part], piece: int, xs: Sequence[Buffer]) -> None:
    """Adds the products of a slice of a unit's tiles and groups of rows of x."""
    for tile, part in enumerate(tiles):
        (words, start), function = part.fragments(piece), f"multiply_{part.weight.dtype}"
        for step in range(SLICE // STEP):
            for group, x in enumerate(xs):
                if gpu().matrix.is_square:  # both halves of the unit's one tile
                    apart = 8 if part.weight.format is not None else 4 * part.weight.loads
                    both = sums.address(0, group), sums.address(1, group)
                    call(function, *both, T.address_of(words[start]), T.int32(apart), T.address_of(x[0]), T.int32(step))
                else:
                    call(function, sums.address(tile, group), T.address_of(words[start + 4 * step]), T.address_of(x[2 * step]))
