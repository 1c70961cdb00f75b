"""Codes of 4 bits, with scales that are searched for, or with mins."""

from __future__ import annotations

import numpy as np

from cupola.passes.encoders.groups import Array, Parts
from cupola.targets.native import weights

# What the value of largest magnitude may be divided by; between -9 and -7 lies nearly all that a wider search gains.
_DIVISORS = np.linspace(-9, -7, 7, dtype=np.float32)
# Where there are mins: the steps of a code between a group's extremes, and how often scale and min are fitted to their codes.
_NUM_STEPS, _NUM_FITS = (16, 18, 20), 3
_MAX_F16 = float(np.finfo(np.float16).max)


def encode_w4(groups: Array) -> Parts:
    """f32 [groups, size] -> uint8 codes 0..15 and f16 scales, for scale · (code − 8), of least squared error.

    As ggml's make_qx_quants does, some scales are tried, each improved to the best one for the codes that it gives.
    """
    return weights.encode_w4(groups, _DIVISORS, weighted=False)


def encode_w4_weighted(groups: Array) -> Parts:
    """The same for an embedding, whose large weights matter most: errors weigh as ggml's do, by the square and the group's mean square."""
    return weights.encode_w4(groups, _DIVISORS, weighted=True)


def encode_w4_mins(groups: Array) -> Parts:
    """f32 [groups, size] -> uint8 codes 0..15, f16 scales and mins, for scale · code + min.

    Between a group's extremes, or where the squared error is less, closer together: as in ggml's make_qkx2_quants, some scales are tried,
    each improved with its min to the best pair for the codes that they give.
    """
    lowest, highest = groups.min(axis=1), groups.max(axis=1)
    best = _in_f16(groups, (highest - lowest) / 15, lowest)
    least = _error_with_mins(groups, *best)
    middle = (lowest + highest) / 2
    for num_steps in _NUM_STEPS:
        scales = (highest - lowest) / np.float32(num_steps)
        tried = _in_f16(groups, scales, middle - np.float32(7.5) * scales)
        for _ in range(_NUM_FITS):
            tried = _in_f16(groups, *_best_line(groups, tried[0]))
        error = _error_with_mins(groups, *tried)
        is_better = error < least
        least = np.where(is_better, error, least)
        for part, new in zip(best, tried, strict=True):
            part[is_better] = new[is_better]
    codes, scales, mins = best
    return codes.astype(np.uint8), scales, mins


def _in_f16(groups: Array, scales: Array, mins: Array) -> tuple[Array, Array, Array]:
    """The nearest codes for scales and mins that are rounded, as f32, and these."""
    scales, mins = (np.clip(part, low, _MAX_F16).astype(np.float16) for part, low in ((scales, 0), (mins, -_MAX_F16)))
    step = scales.astype(np.float32)
    codes = (groups - mins.astype(np.float32)[:, None]) * np.where(step, 1 / step, 0)[:, None]
    return np.clip(np.rint(codes, out=codes), 0, 15, out=codes), scales, mins


def _best_line(groups: Array, codes: Array) -> tuple[Array, Array]:
    """Scales and mins that fit `codes` best: a linear regression of each group."""
    size = groups.shape[1]
    code_sums, sums = codes.sum(axis=1), groups.sum(axis=1)
    products, squares = (np.einsum("gk,gk->g", other, codes) for other in (groups, codes))
    spread = size * squares - code_sums**2  # 0 where all codes are alike
    scales = np.where(spread, (size * products - code_sums * sums) / spread, 0)
    return scales, (sums - scales * code_sums) / size


def _error_with_mins(groups: Array, codes: Array, scales: Array, mins: Array) -> Array:
    missing = groups - (codes * scales.astype(np.float32)[:, None] + mins.astype(np.float32)[:, None])
    return np.einsum("gk,gk->g", missing, missing)
