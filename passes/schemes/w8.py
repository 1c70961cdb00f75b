"""w8a8 and w8a16: weights of 8 bits in groups of 32, 8.5 bits each with the scale. ggml's Q8_0 is of this kind."""

from __future__ import annotations

import numpy as np

from cupola.passes.schemes.base import Choice, Scheme, Storage
from cupola.passes.schemes.blocks import Array, Blocks, encode_groups
from cupola.targets.weight_functions import weight_function

_MAX_CODE = 127


@weight_function
def encode_w8(weight: Array) -> tuple[Array, ...]:
    """[N, K] -> int8 codes and f16 scales; no value is off by more than half a scale."""
    return encode_groups(weight, _encode)


def _encode(groups: Array) -> tuple[Array, ...]:
    largest = abs(groups).max(axis=1)
    scales = (largest / _MAX_CODE).astype(np.float16)
    # A tiny scale rounded down, to one of float16's subnormal numbers, would cut the largest value off.
    scales = np.where(scales.astype(np.float32) * (_MAX_CODE + 0.5) < largest, np.nextafter(scales, np.float16(np.inf)), scales)
    scales = np.minimum(scales, np.finfo(np.float16).max)
    step = scales.astype(np.float32)
    codes = np.rint(groups * np.where(step, 1 / step, 0)[:, None])
    return np.clip(codes, -_MAX_CODE, _MAX_CODE).astype(np.int8), scales


W8 = Storage("8 bits", "int8", "w8g32", encode_w8, holds=("Q8_0", "Q5_0", "Q4_0"), nears=("Q5_1", "Q5_K", "Q6_K"), keep=Blocks.signed)
_CHOICE = Choice(W8, (W8,))
SCHEMES = (
    Scheme("w8a8", "weights of 8 bits, activations rounded to 8 bits", _CHOICE, _CHOICE, 32, "bf16"),
    Scheme("w8a16", "weights of 8 bits, activations as they are", _CHOICE, _CHOICE, 0, "f16"),
)
