"""Weights quantized in groups along their rows, and the loop that encodes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
GROUP = 32
FOUR_BIT_ZERO = 8  # the code of 0 where 4-bit codes have no mins
_CHUNK = 1 << 16  # values encoded at a time: what they need of temporary arrays stays in cache


@dataclass(frozen=True)
class Blocks:
    """A weight [N, K] as `targets.ops.Linear` takes it, K padded to whole groups.

    Attributes:
        codes: int8 [N, K], or uint8 [N, K] of 4 bits.
        scales: f16 [N, K / GROUP].
        mins: f16 [N, K / GROUP], or None; 4-bit codes alone have them.
    """

    codes: Array
    scales: Array
    mins: Array | None = None

    @property
    def tensors(self) -> tuple[Array, ...]:
        """Codes and scales, and mins if there are any."""
        return (self.codes, self.scales) if self.mins is None else (self.codes, self.scales, self.mins)

    def in_order(self, rows: Array | None) -> Blocks:
        """The rows that are asked for; None is all of them."""
        return self if rows is None else Blocks(*(tensor[rows] for tensor in self.tensors))

    def with_mins(self) -> Blocks | None:
        """4-bit blocks with mins that stand for exactly the same values, or None if float16 cannot hold those."""
        if self.mins is not None:
            return self
        mins = -FOUR_BIT_ZERO * self.scales.astype(np.float32)
        return Blocks(self.codes, self.scales, mins.astype(np.float16)) if np.all(abs(mins) <= np.finfo(np.float16).max) else None

    def signed(self) -> Blocks:
        """The same values as int8 codes; blocks with mins have none."""
        assert self.mins is None
        return self if self.codes.dtype == np.int8 else Blocks(self.codes.view(np.int8) - np.int8(FOUR_BIT_ZERO), self.scales)

    def values(self) -> Array:
        """What the codes stand for: f32 [N, K]."""
        shape = (*self.scales.shape, GROUP)
        zero = FOUR_BIT_ZERO if self.codes.dtype == np.uint8 and self.mins is None else 0
        values = self.scales.astype(np.float32)[..., None] * (self.codes.reshape(shape).astype(np.float32) - np.float32(zero))
        values += 0 if self.mins is None else self.mins.astype(np.float32)[..., None]
        return values.reshape(self.codes.shape)


def num_groups(width: int) -> int:
    """Groups in a row of `width` values."""
    return -(-width // GROUP)


def encode_groups(weight: Array, encode: Callable[[Array], tuple[Array, ...]]) -> tuple[Array, ...]:
    """Codes, scales and mins of a weight [N, K], whose rows are padded with zeros to whole groups, a few rows at a time.

    `encode` takes f32 [groups, GROUP] and gives codes of that shape, then scales and perhaps mins, [groups].
    """
    num_rows, width = weight.shape
    padded = num_groups(width) * GROUP
    step = max(1, _CHUNK // padded)
    pieces = []
    # A weight that is no number, or too large for float16, is not for numpy to warn about here.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for start in range(0, num_rows, step):
            rows = weight[start : start + step].astype(np.float32, copy=False)
            rows = rows if padded == width else np.pad(rows, ((0, 0), (0, padded - width)))
            parts = encode(rows.reshape(-1, GROUP))
            pieces.append([part.reshape(len(rows), -1) for part in parts])
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
