"""The largest of each block where one of its numbers is none, or none is finite."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.targets.ops import BlockMaxima
from tests.targets.harness import GPU, RUNNABLE, Input, compile_one, size

WIDTH = 3 * MAXIMA_BLOCK + 23  # the last block is short, and its vectors are of several lengths


@pytest.mark.parametrize("isa", [*RUNNABLE, GPU])
def test_not_a_number_is_the_largest_of_its_block_wherever_it_stands(isa):
    run = compile_one(isa, [Input("x", (size("n"), WIDTH))], lambda x: BlockMaxima(x).call())
    x = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype("float32")
    x[:, MAXIMA_BLOCK : 2 * MAXIMA_BLOCK] = -np.inf
    x[:, -1] = np.inf
    np.fill_diagonal(x, np.copysign(np.float32(np.nan), np.where(np.arange(WIDTH) % 2, 1, -1)))
    expected = [[block.max() for block in np.split(row, range(MAXIMA_BLOCK, WIDTH, MAXIMA_BLOCK))] for row in x]
    np.testing.assert_array_equal(run(x), expected)
