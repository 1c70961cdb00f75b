"""w4a8 and w4a16: weights of 4 bits in groups of 32, 4.5 bits each with the scale, 5 with a min too.

ggml's Q4_0 and Q4_1 are of this kind. The embedding and the vocabulary projection, which suffer most, get 8 bits unless they come in
fewer. So do ggml's types of more than 5 bits, which 4 would spoil.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cupola.passes.schemes.base import Choice, Scheme, Storage
from cupola.passes.schemes.blocks import FOUR_BIT_ZERO, Array, Blocks, encode_groups
from cupola.passes.schemes.w8 import W8
from cupola.targets.weight_functions import weight_function

_LOWEST, _HIGHEST = -FOUR_BIT_ZERO, 15 - FOUR_BIT_ZERO
# What the value of largest magnitude may be divided by; between -9 and -7 lies nearly all that a wider search gains.
_DIVISORS = np.linspace(-9, -7, 7)
_MAX_F16 = float(np.finfo(np.float16).max)


@weight_function
def encode_w4(weight: Array) -> tuple[Array, ...]:
    """[N, K] -> uint8 codes 0..15 and f16 scales, for scale · (code − 8), of least squared error.

    As ggml's make_qx_quants does, some scales are tried, each improved to the best one for the codes that it gives.
    """
    return encode_groups(weight, lambda groups: _encode(groups, np.ones_like(groups)))


@weight_function
def encode_w4_embedding(weight: Array) -> tuple[Array, ...]:
    """The same for an embedding, whose large weights matter most: errors weigh as ggml's do, by the square and the group's mean square."""
    return encode_groups(weight, lambda groups: _encode(groups, groups**2 + (groups**2).mean(axis=1, keepdims=True)))


def _encode(groups: Array, importance: Array) -> tuple[Array, ...]:
    largest = np.take_along_axis(groups, abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    scales, gains = np.zeros_like(largest), np.zeros_like(largest)
    for divisor in _DIVISORS:
        tried, gain = _best_scale(groups, _codes(groups, largest / np.float32(divisor)), importance)
        scales, gains = np.where(gain > gains, tried, scales), np.maximum(gain, gains)
    scales, _ = _best_scale(groups, _codes(groups, scales), importance)
    rounded = np.clip(scales, -_MAX_F16, _MAX_F16).astype(np.float16)
    codes = _codes(groups, rounded.astype(np.float32))
    return (codes + FOUR_BIT_ZERO).astype(np.uint8), rounded


def _codes(groups: Array, scales: Array) -> Array:
    """The nearest codes, as f32."""
    codes = groups * np.where(scales, 1 / scales, 0)[:, None]
    return np.clip(np.rint(codes, out=codes), _LOWEST, _HIGHEST, out=codes)


def _best_scale(groups: Array, codes: Array, importance: Array) -> tuple[Array, Array]:
    """The scales that fit `codes` best, and by how much they lower the error."""
    weighted = importance * codes
    products, squares = (np.einsum("gk,gk->g", other, weighted) for other in (groups, codes))
    scales = np.where(squares, products / squares, 0)
    return scales, products * scales


@weight_function
def encode_w4_mins(weight: Array) -> tuple[Array, ...]:
    """[N, K] -> uint8 codes 0..15, f16 scales and mins, for scale · code + min, between each group's extremes.

    For what is joined with blocks that have mins.
    """
    return encode_groups(weight, _encode_mins)


def _encode_mins(groups: Array) -> tuple[Array, ...]:
    lowest, highest = groups.min(axis=1), groups.max(axis=1)
    mins = np.clip(lowest, -_MAX_F16, _MAX_F16).astype(np.float16)
    scales = np.clip((highest - mins.astype(np.float32)) / 15, 0, _MAX_F16).astype(np.float16)
    step = scales.astype(np.float32)
    codes = np.rint((groups - mins.astype(np.float32)[:, None]) * np.where(step, 1 / step, 0)[:, None])
    return np.clip(codes, 0, 15).astype(np.uint8), scales, mins


W4 = Storage("4 bits", "uint8", "w4g32", encode_w4, holds=("Q4_0",))
W4_EMBEDDING = dataclasses.replace(W4, encode=encode_w4_embedding)
W4_MINS = Storage("4 bits with mins", "uint8", "w4g32m", encode_w4_mins, True, ("Q4_0", "Q4_1"), ("Q4_K",), Blocks.with_mins)
_KEEPS = (W4, W4_MINS, W8)
SCHEMES = (
    Scheme("w4a8", "weights of 4 bits, activations rounded to 8 bits", Choice(W4, _KEEPS), Choice(W8, _KEEPS), 32, "bf16"),
    Scheme("w4a16", "weights of 4 bits, activations as they are", Choice(W4, _KEEPS), Choice(W8, _KEEPS), 0, "f16"),
)
