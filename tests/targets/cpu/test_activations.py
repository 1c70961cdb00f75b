"""Activation functions of numbers far out, and of NaN and infinity."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from tvm import relax

from cupola.targets.ops import ACTIVATIONS, Linear
from cupola.targets.testing import references
from tests.targets.harness import RUNNABLE, Input, compile_one, size


@functools.cache
def activated(isa, activation):
    """A linear layer from one input to one output."""

    def make(x, weight):
        return Linear(x, weight, None, None, activation).emit(relax.TensorType((x.ty.shape[0], 1), "float32"))

    run = compile_one(isa, [Input("x", (size("m"), 1)), Input("weight", (1, 1))], make)
    return lambda x: run(x[:, None], np.ones((1, 1), "float32"))[:, 0]


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(isa, activation):
    x = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-1e-3, 1e-3, 95)]).astype("float32")
    expected = references.activation(activation, x.astype("float64"))
    np.testing.assert_allclose(activated(isa, activation)(x), expected, atol=1e-10, rtol=1e-5)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_not_a_number_stays_one(isa):
    assert np.isnan(activated(isa, "silu")(np.array([np.nan, 1.0], "float32"))).tolist() == [True, False]
