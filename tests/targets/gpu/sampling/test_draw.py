"""Weights as a GPU sums them: integers, which must hold the sum of any vocabulary's."""

from __future__ import annotations

import numpy as np

from cupola.runtime.engine.sampling_params import SamplingParams
from tests.targets.harness import GPU
from tests.targets.test_draw import columns, kernel

WIDTH = 150_001


def test_the_heaviest_rows_sum_is_held() -> None:
    """All tokens weigh as much as one can."""
    uniforms = [0.0, 0.25, 0.6, 1 - 2.0**-30]
    draws = np.array([columns(SamplingParams(), uniform) for uniform in uniforms], "int32")
    found = kernel(GPU, WIDTH)(np.zeros((len(uniforms), WIDTH), "float32"), draws)
    assert found == [int(uniform * WIDTH) for uniform in uniforms]
