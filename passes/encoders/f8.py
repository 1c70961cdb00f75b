"""Codes in E4M3."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from cupola.passes.encoders.groups import Array, Parts
from cupola.targets.formats.tables import E4M3_MAX


def encode_e4m3(groups: Array) -> Parts:
    """f32 [groups, size] -> uint8 codes and f16 scales: the largest value becomes about 448, others the nearest, of two the even."""
    largest = abs(groups).max(axis=1)
    scales = (largest / np.float32(E4M3_MAX)).astype(np.float16)
    # A scale rounded down would cut the largest value off.
    scales = np.where(scales.astype(np.float32) * np.float32(E4M3_MAX) < largest, np.nextafter(scales, np.float16(np.inf)), scales)
    scales = np.minimum(scales, np.finfo(np.float16).max)
    step = scales.astype(np.float32)
    values = np.clip(groups * np.where(step, 1 / step, 0)[:, None], -E4M3_MAX, E4M3_MAX)
    return values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), scales
