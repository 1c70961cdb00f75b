"""How a quantized weight lies in memory: one stream of bytes a panel of 32 output columns, the same on every instruction set.

A panel is a row of groups, 32 inputs each; a group holds its codes, then 32 f16 scales, then 32 f16 mins if there are any.
Codes lie as dot-product instructions take them, four inputs (a quad) of 16 columns in 64 bytes:

    8 bits:  quad 0 of columns 0–15, quad 0 of columns 16–31, quad 1 of columns 0–15, …         8 · 2 · 64 bytes
    4 bits:  the same for pairs of quads; the even quad in the low half of a byte, the odd in the high    4 · 2 · 64 bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from cupola.targets.cpu.emit.simd import Value, name
from cupola.targets.cpu.linear.packing import PANEL, num_panels, shape_of
from cupola.targets.ops import GROUP
from cupola.targets.weight_functions import call_weight_function, weight_function

Array = npt.NDArray[Any]
QUAD, COLUMNS = 4, 16  # inputs that a dot-product instruction sums; columns of 64 bytes of codes
HALVES, QUADS = PANEL // COLUMNS, GROUP // QUAD


@dataclass(frozen=True)
class Codes:
    """What a quantized weight's bytes mean. A code of 4 bits stands for code − 8, unless there are mins."""

    bits: int
    has_mins: bool

    @property
    def zero(self) -> int:
        """The code that stands for 0."""
        return 8 if self.bits == 4 and not self.has_mins else 0

    @property
    def offset(self) -> int:
        """What makes codes without mins unsigned when it is added to what they stand for."""
        return 1 << self.bits - 1

    @property
    def code_bytes(self) -> int:
        """Bytes of codes in a group of a panel; the scales follow them."""
        return PANEL * GROUP * self.bits // 8

    @property
    def group_bytes(self) -> int:
        """Bytes of a group of a panel."""
        return self.code_bytes + PANEL * 2 * (1 + self.has_mins)


def first_byte(block: Value | int, column: Value) -> Value:
    """The first byte of a vector in a group: block (quad or pair of quads) by block, half a panel in 64 bytes."""
    return name(column // COLUMNS * (COLUMNS * QUAD) + column % COLUMNS * QUAD) + block * (HALVES * COLUMNS * QUAD)


def codes_of(weight: relax.Expr, mins: relax.Expr | None) -> Codes:
    """The meaning of an operation's codes."""
    return Codes({"uint8": 4, "int8": 8}[str(weight.ty.dtype)], mins is not None)


def pack_groups(weight: relax.Expr, scales: relax.Expr, mins: relax.Expr | None, gated: bool, builder: relax.BlockBuilder) -> relax.Expr:
    """Codes [N, K], scales and mins [N, K / 32] -> uint8 [panels, K / 32, bytes of a group].

    `gated`: N gates above N ups, of which each panel gets 16 and 16.
    """
    n, k = shape_of(weight)
    out = relax.TensorType([num_panels(n), k // GROUP, codes_of(weight, mins).group_bytes], "uint8")
    arguments = [weight, scales, *([] if mins is None else [mins])]
    return builder.emit(call_weight_function(pack_gated_codes if gated else pack_codes, arguments, out))


@weight_function
def pack_codes(codes: Array, scales: Array, mins: Array | None = None) -> Array:
    """The bytes that the module describes; columns past N are zero."""
    n, k = codes.shape
    panels, groups = num_panels(n), k // GROUP
    padded = np.zeros((panels * PANEL, k), np.uint8)
    padded[:n] = codes.view(np.uint8)
    quads: Array = padded.reshape(panels, HALVES, COLUMNS, groups, QUADS, QUAD).transpose(0, 3, 4, 1, 2, 5)
    if codes.dtype == np.uint8:
        quads = quads[:, :, 0::2] | quads[:, :, 1::2] << 4
    parts = [quads.reshape(panels, groups, -1)]
    for factors in (scales, mins):
        if factors is not None:
            wide = np.zeros((panels * PANEL, groups), np.float16)
            wide[:n] = factors
            parts.append(np.ascontiguousarray(wide.reshape(panels, PANEL, groups).transpose(0, 2, 1)).view(np.uint8))
    return np.concatenate(parts, axis=2)


@weight_function
def pack_gated_codes(codes: Array, scales: Array, mins: Array | None = None) -> Array:
    """`pack_codes` after gates and ups were put side by side, 16 and 16."""
    return pack_codes(*(_interleave(rows) for rows in (codes, scales, *([] if mins is None else [mins]))))


def _interleave(rows: Array) -> Array:
    n, width = rows.shape[0] // 2, rows.shape[1]
    panels = num_panels(2 * n)
    halves = np.zeros((2, panels * COLUMNS, width), rows.dtype)
    halves[:, :n] = rows.reshape(2, n, width)
    mixed: Array = halves.reshape(2, panels, COLUMNS, width).swapaxes(0, 1).reshape(panels * PANEL, width)
    return mixed
