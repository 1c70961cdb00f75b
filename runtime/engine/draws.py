"""Sampling parameters and random numbers as `forward` takes them, where it draws tokens itself (`draws` among its inputs)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cupola.runtime.artifact.inputs import FRACTION_BITS, MAX_STEPS, NO_LIMIT, ONE
from cupola.runtime.engine.sampling_params import SamplingParams

_MAX_INT32 = 2**31 - 1


def parameter_columns(params: SamplingParams) -> tuple[int, ...]:
    """The columns before those of the uniform numbers, for parameters that are not greedy."""
    limit = NO_LIMIT
    if params.min_p > 0:  # the host drops what is below its logarithm, in float64: here the largest magnitude in float32 that it keeps
        most = abs(np.log(params.min_p))
        rounded = np.float32(most)
        limit = _bits(rounded if rounded <= most else np.nextafter(rounded, np.float32(0)))
    top_k = min(max(params.top_k, 0), _MAX_INT32)
    return (_bits(np.float32(params.temperature)), limit, top_k, *_fraction(params.top_p))


def uniform_columns(uniforms: Iterable[float]) -> tuple[int, ...]:
    """The columns of at most MAX_STEPS uniform numbers."""
    halves = [half for uniform in uniforms for half in _fraction(uniform)]
    return (*halves, *(0,) * (2 * MAX_STEPS - len(halves)))


def _fraction(value: float) -> tuple[int, int]:
    """Exact for what a random stream gives, which is a multiple of 2^-53."""
    whole = int(value * ONE * ONE)
    return whole >> FRACTION_BITS, whole & (ONE - 1)


def _bits(value: np.float32) -> int:
    return int(value.view(np.int32))
