"""How a quantized weight lies in memory: one stream of bytes a panel of 32 output columns, the same on every instruction set.

A panel is a row of groups of inputs; a group holds its codes, then 32 f16 scales, then 32 f16 mins if there are any. Codes lie in slices
of 32 inputs, as dot-product instructions take them, four inputs (a quad) of 16 columns in 64 bytes:

    8 bits:  quad 0 of columns 0–15, quad 0 of columns 16–31, quad 1 of columns 0–15, …         8 · 2 · 64 bytes
    4 bits:  the same for pairs of quads; the even quad in the low half of a byte, the odd in the high    4 · 2 · 64 bytes

Kernels go slice by slice, whatever the size of a group: so does the quantization of activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from cupola.targets.cpu.emit.simd import CACHE_LINE, Value, name
from cupola.targets.cpu.linear.packing import PANEL, num_panels, shape_of
from cupola.targets.formats.format import WeightFormat
from cupola.targets.ops import Embedding, GatedLinear, Linear
from cupola.targets.weight_functions import call_weight_function, weight_function

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
    def zero(self) -> int:
        """The code that stands for 0."""
        return self.format.zero

    @property
    def label(self) -> str:
        """In the names of kernels."""
        size, table = self.format.group_size, self.format.table
        return f"w{self.bits}{'m' if self.has_mins else ''}{f'g{size}' if size != SLICE else ''}{table and f'_{table}'}"

    @property
    def offset(self) -> int:
        """The number that makes codes without mins unsigned when it is added to the numbers that they stand for."""
        return 1 << self.bits - 1

    @property
    def code_bytes(self) -> int:
        """Bytes of codes in a group of a panel; the scales follow them."""
        return PANEL * self.format.group_size * self.bits // 8

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
        """Slices of a group."""
        return self.format.group_size // SLICE

    @property
    def group_bytes(self) -> int:
        """Bytes of a group of a panel."""
        return self.code_bytes + PANEL * 2 * (1 + self.has_mins)

    def group_of(self, at: Value | int) -> Value | int:
        """The group that slice `at` of a panel is of."""
        return at if self.slices == 1 else at // self.slices if isinstance(at, int) else name(at // self.slices)

    def place(self, at: Value | int, num_bytes: int) -> tuple[Value | int, Value | int]:
        """The group that slice `at` of a panel is of, and where it begins in it if each slice takes up `num_bytes`."""
        start = 0 if self.slices == 1 else at % self.slices * num_bytes
        return self.group_of(at), start if isinstance(start, int) else name(start)


def first_byte(block: Value | int, column: Value) -> Value:
    """The first byte of a vector in a group: block (quad or pair of quads) by block, half a panel in 64 bytes."""
    return name(column // COLUMNS * (COLUMNS * QUAD) + column % COLUMNS * QUAD) + block * (HALVES * COLUMNS * QUAD)


def codes_of(op: Linear | GatedLinear | Embedding) -> Codes | None:
    """How an operation's weight is packed, or None if these kernels have no way to store its format."""
    if not op.format:
        return None
    form = WeightFormat.parse(op.format)
    is_known = form.bits == 4 or (form.bits == 8 and not form.has_mins)
    return Codes(form) if is_known and form.scale_dtype == "float16" and form.group_size % SLICE == 0 else None


def pack_groups(op: Linear | GatedLinear | Embedding, codes: Codes, builder: relax.BlockBuilder) -> relax.Expr:
    """Codes [N, K], scales and mins [N, groups] -> uint8 [panels, groups, bytes of a group].

    Of N gates above N ups, each panel gets 16 and 16.
    """
    n, k = shape_of(op.weight)
    out = relax.TensorType([num_panels(n), k // codes.format.group_size, codes.group_bytes], "uint8")
    assert op.scales is not None
    arguments = [op.format, op.weight, op.scales, *([] if op.mins is None else [op.mins])]
    return builder.emit(call_weight_function(pack_gated_codes if isinstance(op, GatedLinear) else pack_codes, arguments, out))


@weight_function
def pack_codes(format: str, codes: Array, scales: Array, mins: Array | None = None) -> Array:
    """The bytes that the module describes; columns past N are zero."""
    form, (n, k) = WeightFormat.parse(format), codes.shape
    panels, groups = num_panels(n), k // form.group_size
    padded = np.zeros((panels * PANEL, k), np.uint8)
    padded[:n] = codes.view(np.uint8)
    quads: Array = padded.reshape(panels, HALVES, COLUMNS, groups, -1, QUAD).transpose(0, 3, 4, 1, 2, 5)
    if form.bits == 4:
        quads = quads[:, :, 0::2] | quads[:, :, 1::2] << 4
    parts = [quads.reshape(panels, groups, -1)]
    for factors in (scales, mins):
        if factors is not None:
            wide = np.zeros((panels * PANEL, groups), np.float16)
            wide[:n] = factors
            parts.append(np.ascontiguousarray(wide.reshape(panels, PANEL, groups).transpose(0, 2, 1)).view(np.uint8))
    return np.concatenate(parts, axis=2)


@weight_function
def pack_gated_codes(format: str, codes: Array, scales: Array, mins: Array | None = None) -> Array:
    """`pack_codes` after gates and ups were put side by side, 16 and 16."""
    return pack_codes(format, *(_interleave(rows) for rows in (codes, scales, *([] if mins is None else [mins]))))


def _interleave(rows: Array) -> Array:
    n, width = rows.shape[0] // 2, rows.shape[1]
    panels = num_panels(2 * n)
    halves = np.zeros((2, panels * COLUMNS, width), rows.dtype)
    halves[:, :n] = rows.reshape(2, n, width)
    mixed: Array = halves.reshape(2, panels, COLUMNS, width).swapaxes(0, 1).reshape(panels * PANEL, width)
    return mixed
