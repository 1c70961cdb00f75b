"""How a quantized weight lies in memory: one stream of bytes a panel of 32 output columns, the same on every instruction set.

A panel is a row of blocks of inputs, each a group or a super-block. A block holds its codes, then for 32 columns each the scales of its
groups and their mins or zeros if there are any (zeros in the type of scales), and if it is a super-block the super scales and super mins.
In a super-block the codes of each slice's scales and mins follow its own codes at once, if both together take whole cache lines: processors
foresee what lies evenly.
Codes lie in slices of 32 inputs, as dot-product instructions take them, four inputs (a quad) of 16 columns in 64 bytes:

    8 bits:  quad 0 of columns 0–15, quad 0 of columns 16–31, quad 1 of columns 0–15, …         8 · 2 · 64 bytes
    4 bits:  the same for pairs of quads; the even quad in the low half of a byte, the odd in the high    4 · 2 · 64 bytes
    2 bits:  the same for four quads                                                            2 · 2 · 64 bytes
    1 bit:   the same for eight                                                                 1 · 2 · 64 bytes

Codes of other sizes are taken apart: of 6 bits the lowest 4 of a slice come first, then the others. Codes of scales and of mins
take up a byte each, or if they have 4 bits, one for both.

Kernels go slice by slice, whatever the size of a group: so does the quantization of activations. A slice may have two groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.tirx.script import builder as T

from cupola.runtime.artifact.tensors import ITEM_BYTES
from cupola.targets.cpu.emit.simd import CACHE_LINE, Buffer, Value, name
from cupola.targets.cpu.linear.packing import PANEL, num_panels, shape_of
from cupola.targets.formats.format import WeightFormat
from cupola.targets.formats.tables import TABLES
from cupola.targets.native import weights
from cupola.targets.ops import Embedding, ExpertLinear, GatedExpertLinear, GatedLinear, Linear, factors_of
from cupola.targets.weight_functions import Rows, call_weight_function, in_strips

Array = npt.NDArray[Any]
QUAD, COLUMNS = 4, 16  # inputs that a dot-product instruction sums; columns of 64 bytes of codes
SLICE = 32  # inputs whose products are summed before they are scaled: a group of activations, and one or a part of one of weights
HALVES, QUADS = PANEL // COLUMNS, SLICE // QUAD


@dataclass(frozen=True)
class Codes:
    """A weight format as panels have it: where its bytes are."""

    format: WeightFormat

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.format.bits

    @property
    def has_mins(self) -> bool:
        """True if each group has a min."""
        return self.format.has_mins

    @property
    def has_zeros(self) -> bool:
        """True if each group has a zero."""
        return self.format.has_zeros

    @property
    def zero(self) -> int:
        """The code that stands for 0."""
        return self.format.zero

    @property
    def is_signed(self) -> bool:
        """True if what is multiplied has a sign: codes of 8 bits, and entries of a table."""
        return self.format.code_dtype == "int8" or bool(self.format.table)

    @property
    def planes(self) -> tuple[int, ...]:
        """The bits that lie together, from the lowest on: 6 are 4 and 2."""
        return tuple(size for size in (8, 4, 2, 1) if self.bits & size)

    @property
    def is_plain(self) -> bool:
        """True of codes of 4 or 8 bits with a scale for each whole slice."""
        return len(self.planes) == 1 and self.bits > 2 and not self.format.super_size

    @property
    def parts(self) -> int:
        """Groups of a slice; 1 too where a group is several slices."""
        return max(SLICE // self.format.group_size, 1)

    @property
    def label(self) -> str:
        """In the names of kernels."""
        size, table = self.format.group_size, self.format.table
        if not self.is_plain or self.format.scale_dtype != "float16":
            return self.format.name.replace("-", "_")
        return f"w{self.bits}{'m' if self.has_mins else ''}{f'g{size}' if size != SLICE else ''}{table and f'_{table}'}"

    @property
    def offset(self) -> int:
        """The number that makes codes without mins unsigned when it is added to the numbers that they stand for."""
        return 1 << self.bits - 1

    @property
    def code_bytes(self) -> int:
        """Bytes of codes in a block of a panel; the scales follow them."""
        return PANEL * self.format.block_size * self.bits // 8

    @property
    def slice_bytes(self) -> int:
        """Bytes of codes in a slice of a panel."""
        return PANEL * SLICE * self.bits // 8

    @property
    def stride(self) -> int:
        """Bytes of a panel's stream that come with a slice, in whole cache lines: its codes and a share of what follows the group's."""
        return -(-self.group_bytes // (self.slices * CACHE_LINE)) * CACHE_LINE

    @property
    def slices(self) -> int:
        """Slices of a block."""
        return self.format.block_size // SLICE

    @property
    def in_nibbles(self) -> bool:
        """True if the codes of a group's scale and min share a byte."""
        return self.format.scale_bits == 4 and self.has_mins

    @property
    def beside_slice(self) -> int:
        """Bytes of codes of scales and mins that follow a slice of a super-block at once; 0 if they follow all slices."""
        size = PANEL * self.parts * (2 if self.has_mins and not self.in_nibbles else 1)
        return size if self.format.super_size and (self.slice_bytes + size) % CACHE_LINE == 0 else 0

    @property
    def slice_step(self) -> int:
        """Bytes from where a slice of a block begins to where the next one does."""
        return self.slice_bytes + self.beside_slice

    @property
    def lies_evenly(self) -> bool:
        """True if slices follow each other at one distance, but for a little behind a super-block."""
        return self.slices == 1 or self.beside_slice > 0

    @property
    def factors(self) -> dict[str, int]:
        """Where in a block the numbers beside codes begin, those of its first slice if they follow each, by name; where it ends, by ""."""
        start = self.code_bytes
        places: dict[str, int] = {}
        for factors, size, dtype in self.format.factors:
            shared = self.in_nibbles and factors == "mins"
            places[factors] = places["scales"] if shared else start
            stored = self.format.scale_dtype if self.has_zeros else dtype
            start += 0 if shared else PANEL * (self.format.block_size // size) * ITEM_BYTES[stored]
        if self.beside_slice:
            places["scales"] = self.slice_bytes
            places |= {"mins": self.slice_bytes + (0 if self.in_nibbles else PANEL * self.parts)} if self.has_mins else {}
        return places | {"": start}

    def factor_step(self, which: str) -> int:
        """Bytes from the factors of a slice of a block to those of the next one; 0 of those that a block has once."""
        if which.startswith("super") or not self.format.super_size:
            return 0
        return self.slice_step if self.beside_slice else PANEL * self.parts

    @property
    def group_bytes(self) -> int:
        """Bytes of a block of a panel."""
        return self.factors[""]

    def group_of(self, at: Value | int) -> Value | int:
        """The block that slice `at` of a panel is of."""
        return at if self.slices == 1 else at // self.slices if isinstance(at, int) else name(at // self.slices)

    def place(self, at: Value | int, num_bytes: int) -> tuple[Value | int, Value | int]:
        """The block that slice `at` of a panel is of, and where it begins in it if each slice takes up `num_bytes`."""
        start = 0 if self.slices == 1 else at % self.slices * num_bytes
        return self.group_of(at), start if isinstance(start, int) else name(start)

    def code(self, weight: Buffer, block: tuple[Value, Value], column: Value, k: Value) -> Value:
        """The code of input k of a block, of fewer than 8 bits, as int32."""
        gapless = len(self.planes) == 1 and not self.beside_slice
        only = self.slices == 1 or gapless  # where slices follow each other without a gap, quads do too
        quad, start = (k // QUAD, 0) if only else (k % SLICE // QUAD, k // SLICE * self.slice_step)
        found, low = None, 0
        for size in self.planes:
            byte = weight[(*block, first_byte(quad * size // 8, column) + k % QUAD + start)]
            bits = T.cast(byte, "int32") >> T.cast(quad % (8 // size) * size, "int32") & T.int32((1 << size) - 1)
            found = bits if found is None else found | bits << T.int32(low)
            start, low = start + PANEL * SLICE * size // 8, low + size
        return found


def first_byte(block: Value | int, column: Value) -> Value:
    """The first byte of a vector in a group: block (quad or pair of quads) by block, half a panel in 64 bytes."""
    return name(column // COLUMNS * (COLUMNS * QUAD) + column % COLUMNS * QUAD) + block * (HALVES * COLUMNS * QUAD)


def codes_of(op: Linear | GatedLinear | Embedding | ExpertLinear | GatedExpertLinear) -> Codes | None:
    """How an operation's weight is packed, or None if these kernels have no way to store its format."""
    if not op.format:
        return None
    form = WeightFormat.parse(op.format)
    if form.bits == 8 and form.has_mins:
        return None
    if form.super_size:
        in_slices = form.super_size % SLICE == 0 and form.group_size in (SLICE // 2, SLICE)
    else:
        in_slices = form.group_size % SLICE == 0
    return Codes(form) if in_slices else None


@cache
def integers_of(table: str) -> tuple[tuple[int, ...], float] | None:
    """A table's entries, up to 16, as integers of 8 bits with a sign, and what those are multiples of; None if there are no such."""
    for unit in (1.0, 0.5, 0.25, 0.125) if len(TABLES[table]) <= 16 else ():
        integers = [entry / unit for entry in TABLES[table]]
        if all(entry == int(entry) and abs(entry) < 128 for entry in integers):
            return tuple(map(int, integers)), unit
    return None


def pack_groups(op: Linear | GatedLinear | Embedding, codes: Codes, builder: relax.BlockBuilder) -> relax.Expr:
    """Codes [N, K] and what stands beside them -> uint8 [panels, blocks, bytes of a block].

    Of N gates above N ups, each panel gets 16 and 16.
    """
    n, k = shape_of(op.weight)
    out = relax.TensorType([num_panels(n), k // codes.format.block_size, codes.group_bytes], "uint8")
    arguments = [op.format, op.weight, *factors_of(op)]
    return builder.emit(call_weight_function(pack_gated_codes if isinstance(op, GatedLinear) else pack_codes, arguments, out))


def pack_expert_groups(op: ExpertLinear | GatedExpertLinear, codes: Codes, builder: relax.BlockBuilder) -> relax.Expr:
    """Of E experts -> uint8 [E · panels, blocks, bytes of a block], the panels of each as `pack_groups` makes them."""
    (n, k), gated = shape_of(op.weight), isinstance(op, GatedExpertLinear)
    panels = op.num_experts * num_panels(n // op.num_experts)
    out = relax.TensorType([panels, k // codes.format.block_size, codes.group_bytes], "uint8")
    arguments = [f"{op.format} {op.num_experts} {'gated' if gated else ''}", op.weight, *factors_of(op)]
    return builder.emit(call_weight_function(pack_expert_codes, arguments, out))


_STRIP = 1 << 20  # values of a strip: what they take up stays in a core's cache


def _step(width: int) -> int:
    """Panels of a strip."""
    return max(1, _STRIP // (PANEL * width))


def _rows_in_strips(form: str, shape: tuple[int, int]) -> Iterator[tuple[str, Rows]]:
    num_rows, step = shape[0], _step(shape[1]) * PANEL
    for start in range(0, num_rows, step):
        yield form, np.arange(start, min(start + step, num_rows))


def _gated_in_strips(form: str, shape: tuple[int, int]) -> Iterator[tuple[str, Rows]]:
    half, step = shape[0] // 2, _step(shape[1]) * COLUMNS
    for start in range(0, half, step):
        rows = np.arange(start, min(start + step, half))
        yield form, np.concatenate((rows, half + rows))


def _experts_in_strips(experts: str, shape: tuple[int, int]) -> Iterator[tuple[str, Rows]]:
    form, num_experts, gated = experts.split(" ")
    for rows in np.split(np.arange(shape[0]), int(num_experts)):
        yield f"{form} 1 {gated}", rows


@in_strips(_experts_in_strips)
def pack_expert_codes(experts: str, codes: Array, *factors: Array) -> Array:
    """The panels of experts whose rows stand one above the other; `experts` is the format, their number, and "gated" if they are that."""
    form, num_experts, gated = experts.split(" ")
    pack = pack_gated_codes if gated else pack_codes
    parts = [np.split(rows, int(num_experts)) for rows in (codes, *factors)]
    return np.concatenate([pack(form, *expert) for expert in zip(*parts, strict=True)])


@in_strips(_rows_in_strips)
def pack_codes(format: str, codes: Array, *factors: Array) -> Array:
    """The bytes that the module describes; columns past N are zero. `factors` come in the order of `WeightFormat.factors`."""
    return _pack(format, _padded(np.arange(len(codes)), PANEL), codes, *factors)


@in_strips(_gated_in_strips)
def pack_gated_codes(format: str, codes: Array, *factors: Array) -> Array:
    """`pack_codes` of gates above ups, of which each panel gets 16 and 16."""
    half = len(codes) // 2
    gates = _padded(np.arange(half), COLUMNS).reshape(-1, COLUMNS)
    ups = np.where(gates < 0, gates, gates + half)
    return _pack(format, np.concatenate((gates, ups), axis=1).reshape(-1), codes, *factors)


def _padded(rows: Rows, multiple: int) -> Rows:
    return np.pad(rows, (0, -len(rows) % multiple), constant_values=-1)


def _pack(format: str, order: Rows, codes: Array, *factors: Array) -> Array:
    """The panels whose columns are the rows of `order`, zeros where that is -1."""
    packing = Codes(WeightFormat.parse(format))
    form = packing.format
    panels = np.empty((len(order) // PANEL, codes.shape[1] // form.block_size, packing.group_bytes), np.uint8)
    weights.pack_codes(codes, order, form.bits, form.block_size, packing.slice_step, panels)
    given = dict(zip((name for name, _, _ in form.factors), factors, strict=True))
    if packing.in_nibbles:
        given["scales"] = given["scales"] | given.pop("mins") << 4
    if form.has_zeros:
        given["mins"] = given["mins"].astype(given["scales"].dtype)
    for which, numbers in given.items():
        weights.pack_factors(numbers, order, packing.factors[which], packing.parts, packing.factor_step(which), panels)
    return panels
