"""Linear and GatedLinear, executed against float64."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from cupola.targets.ops import ACTIVATIONS, GatedLinear, Linear
from tests.targets.harness import DTYPES, RUNNABLE, Input, compile_one, round_to, same_bits, size

CASES = [pytest.param(isa, dtype, id=f"{isa}-{dtype}") for isa in RUNNABLE for dtype in DTYPES]


def reference_activation(name: str, x: np.ndarray) -> np.ndarray:
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return {"": x, "silu": x / (1 + np.exp(-x)), "relu": np.maximum(x, 0)}[name]


@functools.cache
def linear(isa, n, k, dtype, bias, residual, activation):
    m = size("m")
    inputs = [Input("x", (m, k)), Input("weight", (n, k), dtype)]
    inputs += [Input("bias", (n,), dtype)] * bias + [Input("residual", (m, n))] * residual

    def make(x, weight, *extra):
        rest = list(extra)
        return Linear(x, weight, rest.pop(0) if bias else None, rest.pop(0) if residual else None, activation).emit(
            relax.TensorType((m, n), "float32")
        )

    return compile_one(isa, inputs, make)


@functools.cache
def gated(isa, n, k, dtype, bias, activation):
    m = size("m")
    inputs = [Input("x", (m, k)), Input("weight", (2 * n, k), dtype)] + [Input("bias", (2 * n,))] * bias

    def make(x, weight, *extra):
        return GatedLinear(x, weight, extra[0] if bias else None, activation).emit(relax.TensorType((m, n), "float32"))

    return compile_one(isa, inputs, make)


@pytest.mark.parametrize(("isa", "dtype"), CASES)
@settings(max_examples=6)
@given(
    rows=st.integers(1, 130),
    kernel=st.sampled_from([(32, 16, False, False, ""), (70, 50, True, True, "gelu"), (7, 3, False, True, "silu")]),
    seed=st.integers(0, 2**32 - 1),
)
def test_linear(isa, dtype, rows, kernel, seed):
    (n, k, bias, residual, activation), random = kernel, np.random.default_rng(seed)
    x, weight = random.standard_normal((rows, k)).astype("float32"), round_to(random.standard_normal((n, k)) / math.sqrt(k), dtype)
    b, r = round_to(random.standard_normal(n), dtype), random.standard_normal((rows, n)).astype("float32")
    expected = x.astype("float64") @ weight.astype("float64").T + (b.astype("float64") if bias else 0)
    expected = reference_activation(activation, expected) + (r if residual else 0)
    actual = linear(isa, n, k, dtype, bias, residual, activation)(x, weight, *([b] if bias else []), *([r] if residual else []))
    np.testing.assert_allclose(actual, expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize(("isa", "dtype"), CASES)
@settings(max_examples=3)
@given(rows=st.integers(1, 40), n=st.just(35), bias=st.just(True), seed=st.integers(0, 2**32 - 1))
def test_gated_linear(isa, dtype, rows, n, bias, seed):
    k, random = 24, np.random.default_rng(seed)
    x, weight = random.standard_normal((rows, k)).astype("float32"), round_to(random.standard_normal((2 * n, k)) / math.sqrt(k), dtype)
    b = random.standard_normal(2 * n).astype("float32")
    both = x.astype("float64") @ weight.astype("float64").T + (b if bias else 0)
    expected = reference_activation("silu", both[:, :n]) * both[:, n:]
    actual = gated(isa, n, k, dtype, bias, "silu")(x, weight, *([b] if bias else []))
    np.testing.assert_allclose(actual, expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(isa, activation):
    x = np.concatenate([np.linspace(-100, 100, 4001), np.linspace(-1e-3, 1e-3, 95)]).astype("float32")[:, None]
    actual = linear(isa, 1, 1, "float32", False, False, activation)(x, np.ones((1, 1), "float32"))
    np.testing.assert_allclose(actual, reference_activation(activation, x.astype("float64")), atol=1e-10, rtol=1e-5)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_not_a_number_stays_one(isa):
    x = np.array([[np.nan], [1.0]], "float32")
    actual = linear(isa, 1, 1, "float32", False, False, "silu")(x, np.ones((1, 1), "float32"))
    assert np.isnan(actual).tolist() == [[True], [False]]


@pytest.mark.parametrize("isa", RUNNABLE)
@settings(max_examples=8)
@given(rows=st.integers(1, 220), first=st.integers(0, 219), seed=st.integers(0, 2**32 - 1))
def test_a_row_does_not_depend_on_its_batch(isa, rows, first, seed):
    random = np.random.default_rng(seed)
    x, weight = random.standard_normal((220, 50)).astype("float32"), random.standard_normal((70, 50)).astype("float32")
    bias, residual = random.standard_normal(70).astype("float32"), random.standard_normal((220, 70)).astype("float32")
    run = linear(isa, 70, 50, "float32", True, True, "gelu")
    part = slice(first, first + rows)
    assert same_bits(run(x[part], weight, bias, residual[part]), run(x, weight, bias, residual)[part])


def test_activations_are_all_known():
    for name in ACTIVATIONS:
        reference_activation(name, np.zeros(1))
