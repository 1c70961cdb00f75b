"""Codes of 8 bits."""

from __future__ import annotations

import numpy as np

from cupola.passes.encoders.groups import Array, Parts

_MAX_CODE = 127


def encode_w8(groups: Array) -> Parts:
    """f32 [groups, size] -> int8 codes and f16 scales; no value is off by more than half a scale."""
    largest = abs(groups).max(axis=1)
    scales = (largest / _MAX_CODE).astype(np.float16)
    # A tiny scale rounded down, to one of float16's subnormal numbers, would cut the largest value off.
    scales = np.where(scales.astype(np.float32) * (_MAX_CODE + 0.5) < largest, np.nextafter(scales, np.float16(np.inf)), scales)
    scales = np.minimum(scales, np.finfo(np.float16).max)
    step = scales.astype(np.float32)
    codes = np.rint(groups * np.where(step, 1 / step, 0)[:, None])
    return np.clip(codes, -_MAX_CODE, _MAX_CODE).astype(np.int8), scales
