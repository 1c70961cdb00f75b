"""Rows of activations rounded to int8 on the fly, in groups of 32 with a scale each (as llama.cpp's Q8_0), after a norm if there is one.

x[k] is about scale · q[k], q from −127 to 127, scale = max |x| / 127. Beside it stands what matrix products want of a group: the integer to
start sums from, base − zero · Σq, and scale · Σq for weights with a min; both for each half of the group if weights have smaller groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from tvm.tirx.script import builder as T

from cupola.targets.cpu.emit.loops import reduce_sum
from cupola.targets.cpu.emit.simd import ROUND, ROUND_BITS, Buffer, Simd, Value, lanes_of, local, name, pieces, splat, tree
from cupola.targets.cpu.linear.quantized_packing import QUAD, QUADS, SLICE


@dataclass(frozen=True)
class RowSource:
    """Float rows [m, depth] and the RMSNorm (arXiv:1910.07467) that they go through first, if any."""

    simd: Simd
    x: Buffer
    depth: int
    norm: Buffer | None
    epsilon: float

    def place(self, row: Value) -> tuple[Value, ...]:
        """Where a row stands in `x`."""
        return (row,)

    def factor(self, row: Value) -> Value:
        """1 / √(mean of squares + epsilon) of a row; 1 without a norm."""
        if self.norm is None:
            return T.float32(1)

        def add_square(start: Value | int, lanes: int, total: Value) -> Value:
            value = self.simd.load(self.x, (*self.place(row), start), lanes)
            return self.simd.fma(value, value, total)

        squares = reduce_sum(self.simd, self.depth, add_square)
        return name(T.float32(1) / T.sqrt(self.simd.fma(squares, T.float32(1 / self.depth), T.float32(self.epsilon))))

    def load(self, row: Value, start: Value | int, lanes: int, factor: Value) -> Value:
        """`lanes` values of a row from `start` on."""
        value = self.simd.load(self.x, (*self.place(row), start), lanes)
        return value if self.norm is None else name(value * splat(factor, lanes) * self.simd.load(self.norm, (start,), lanes))

    def for_each_group(self, row: Value, body: Callable[..., None]) -> None:
        """`body(group, *values)` for every group of a row, its values in vectors; inputs past the depth are zeros."""
        factor = self.factor(row)
        whole, lanes = self.depth // SLICE, self.simd.lanes
        with T.serial(whole) as group:
            body(group, *(self.load(row, group * SLICE + start, lanes, factor) for start in range(0, SLICE, lanes)))
        if self.depth % SLICE:
            body(whole, *self._last_group(row, whole * SLICE, factor))

    def _last_group(self, row: Value, start: int, factor: Value) -> list[Value]:
        """The rest of a row, with zeros up to a whole group."""
        simd, rest = self.simd, local(SLICE)
        for at in range(0, SLICE, simd.lanes):
            simd.store(rest, splat(0.0, simd.lanes), (at,))
        for at, lanes in pieces(self.depth - start, simd.lanes):
            simd.store(rest, self.load(row, start + at, lanes, factor), (at,))
        return [simd.load(rest, (at,)) for at in range(0, SLICE, simd.lanes)]


@dataclass(frozen=True)
class Int8Rows:
    """Scratch for quantized rows, one buffer since TVM's pool takes its time: int32 [places, words], a place for each group of each row.

    Its words are `QUADS` of four int8 each, the scale (float32), `base` − zero · Σq of each of its `parts` if there is a `zero`, and
    scale · Σq (float32) of each for weights with a min. They are read `lanes` at a time.
    """

    groups: int
    zero: int
    base: int
    has_mins: bool
    parts: int
    words: Buffer
    lanes: int

    @classmethod
    def allocate(cls, num_rows: Value | int, groups: int, zero: int, base: int, has_mins: bool, parts: int, lanes: int = 1) -> Self:
        """Room for rows, whose words are read so many at a time."""
        num_places, width = cls.shape(num_rows, groups, 1 + parts * (bool(zero) + has_mins))
        words = T.alloc_buffer((num_places, -(-width // lanes) * lanes), "int32", scope="global")
        return cls(groups, zero, base, has_mins, parts, words, lanes)

    @staticmethod
    def shape(num_rows: Value | int, groups: int, num_others: int) -> tuple[Value | int, int]:
        """How many places there are, and words in each, of which `num_others` come behind the quads."""
        return num_rows * groups, QUADS + num_others

    @property
    def sum_at(self) -> int:
        """Which word is the first sum."""
        return QUADS + 1 + self.parts * bool(self.zero)

    def quad(self, place: Value, quad: int) -> Value:
        """Four int8 of a group; like all words either one or, as a lane of those that are read at a time, in every lane."""
        return name(self._word(place, quad))

    def scale(self, place: Value) -> Value:
        """The scale of a group's codes."""
        return name(self._word(place, QUADS, "float32"))

    def start(self, place: Value, part: int = 0) -> Value:
        """The number that sums of products of a group's part start from."""
        return name(self._word(place, QUADS + 1 + part)) if self.zero else T.int32(self.base)

    def sum(self, place: Value, part: int = 0) -> Value | None:
        """The sum of a group's part, if weights have mins."""
        return name(self._word(place, self.sum_at + part, "float32")) if self.has_mins else None

    def _word(self, place: Value, at: int, dtype: str = "int32") -> Value:
        lane = at % self.lanes
        if self.lanes == 1:
            word = self.words[place, at]
            return word if dtype == "int32" else T.reinterpret(dtype, word)
        vector = T.reinterpret(f"{dtype}x{self.lanes}", self.words[place, T.ramp(at - lane, 1, self.lanes)])
        return T.Shuffle([vector], [lane] * self.lanes)

    def place(self, row: Value, group: Value | int) -> Value:
        """Where a group of a row is."""
        return name(row * self.groups + group)

    @staticmethod
    def padded(num_rows: Value) -> Value:
        """How many rows tiles cover, some of which repeat the last one."""
        return num_rows

    def fill(self, source: RowSource, row: Value, to: Value | None = None) -> None:
        """Quantizes a row of `source`, as row `to` if that is another; inputs past the depth are zeros."""
        source.for_each_group(row, lambda group, *values: self._fill_group(source.simd, values, row if to is None else to, group))

    def copy(self, rows: Int8Rows, row: Value, to: int) -> None:
        """Makes row `to` what a row of `rows` is."""
        with T.serial(self.groups) as group:
            source, place = rows.place(row, group), self.place(T.int64(to), group)
            for at, lanes in pieces(int(self.words.shape[1]), 16):
                index = T.ramp(at, 1, lanes) if lanes > 1 else at
                T.buffer_store(self.words, rows.words[source, index], [place, index])

    def _fill_group(self, simd: Simd, values: Sequence[Value], row: Value, group: Value | int) -> None:
        lanes, place = simd.lanes, self.place(row, group)
        highest = _magnitude(values[0])
        for value in values[1:]:
            highest = name(T.max(highest, _magnitude(value)))
        largest = tree(highest, T.max)
        inverse = splat(name(T.Select(largest > T.float32(0), T.float32(127) / largest, T.float32(0))), lanes)
        rounded = [_round(value * inverse) for value in values]
        for index, codes in enumerate(rounded):
            packed = T.reinterpret(f"int32x{lanes // QUAD}" if lanes > QUAD else "int32", T.cast(codes, f"int8x{lanes}"))
            self._put_quads(place, row, index * lanes // QUAD, packed)
        scale = name(largest * T.float32(1 / 127))
        self._put(place, row, QUADS, T.reinterpret("int32", scale))
        if not self.zero and not self.has_mins:
            return
        for part in range(self.parts):
            vectors = len(rounded) // self.parts
            total, *others = rounded[part * vectors : (part + 1) * vectors]
            for codes in others:
                total = name(total + codes)
            total = tree(total, lambda a, b: a + b)
            if self.zero:
                self._put(place, row, QUADS + 1 + part, total * T.int32(-self.zero) + T.int32(self.base))
            if self.has_mins:
                self._put(place, row, self.sum_at + part, T.reinterpret("int32", T.cast(total, "float32") * scale))

    def _put_quads(self, place: Value, row: Value, first: int, packed: Value) -> None:
        """Writes quads of a row at its place, from quad `first` on."""
        count = lanes_of(packed)
        T.buffer_store(self.words, packed, [place, T.ramp(first, 1, count) if count > 1 else first])

    def _put(self, place: Value, row: Value, at: int, word: Value) -> None:
        """Writes one of the words behind the quads."""
        T.buffer_store(self.words, word, [place, at])


def _magnitude(value: Value) -> Value:
    return name(T.max(value, splat(0.0, value.ty.dtype.lanes) - value))


def _round(value: Value) -> Value:
    """To the nearest integer, ties to even: adding 1.5 · 2^23 leaves it in the low bits."""
    lanes = value.ty.dtype.lanes
    return name(T.reinterpret(f"int32x{lanes}", value + splat(ROUND, lanes)) - T.broadcast(T.int32(ROUND_BITS), lanes))
