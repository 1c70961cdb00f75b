"""Norms, rotary embedding and embedding rows, executed against float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from cupola.targets.ops import Rotary
from tests.targets.harness import DTYPES, RUNNABLE, Input, compile_one, round_to, same_bits, size

INNER = [(16,), (50,), (576,), (3, 80)]


@functools.cache
def rms_norm(isa, inner):
    inputs = [Input("x", (size("n"), *inner)), Input("weight", inner[-1:])]
    return compile_one(isa, inputs, lambda x, w: relax.op.nn.rms_norm(x, w, [-1], 1e-5))


@functools.cache
def layer_norm(isa, inner):
    inputs = [Input("x", (size("n"), *inner)), Input("scale", inner[-1:]), Input("shift", inner[-1:])]
    return compile_one(isa, inputs, lambda x, scale, shift: relax.op.nn.layer_norm(x, scale, shift, [-1], 1e-5))


@functools.cache
def rotary(isa, heads, dim):
    n = size("n")
    inputs = [Input("x", (n, heads, dim)), Input("cos", (n, dim)), Input("sin", (n, dim))]
    return compile_one(isa, inputs, lambda x, cos, sin: Rotary(x, cos, sin).emit(relax.TensorType((n, heads, dim), "float32")))


@pytest.mark.parametrize("isa", RUNNABLE)
@settings(max_examples=5)
@given(rows=st.integers(1, 90), inner=st.sampled_from(INNER), seed=st.integers(0, 2**32 - 1))
def test_norms(isa, rows, inner, seed):
    random = np.random.default_rng(seed)
    x = (random.standard_normal((rows, *inner)) * 3 + 1).astype("float32")
    scale, shift = random.standard_normal((2, inner[-1])).astype("float32")
    exact = x.astype("float64")
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * scale
    actual = rms_norm(isa, inner)(x, scale)
    np.testing.assert_allclose(actual, expected, atol=3e-6, rtol=2e-6)
    assert same_bits(rms_norm(isa, inner)(x[-1:], scale), actual[-1:])
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * scale + shift
    actual = layer_norm(isa, inner)(x, scale, shift)
    np.testing.assert_allclose(actual, expected, atol=3e-6, rtol=2e-6)
    assert same_bits(layer_norm(isa, inner)(x[-1:], scale, shift), actual[-1:])


@pytest.mark.parametrize("isa", RUNNABLE)
@settings(max_examples=5)
@given(n=st.integers(1, 200), shape=st.sampled_from([(1, 16), (3, 64), (2, 20)]), seed=st.integers(0, 2**32 - 1))
def test_rotary(isa, n, shape, seed):
    (heads, dim), random = shape, np.random.default_rng(seed)
    x = random.standard_normal((n, heads, dim)).astype("float32")
    cos, sin = random.standard_normal((2, n, dim)).astype("float32")
    turned = np.concatenate([-x[..., dim // 2 :], x[..., : dim // 2]], -1).astype("float64")
    actual = rotary(isa, heads, dim)(x, cos, sin)
    np.testing.assert_allclose(actual, x * cos[:, None].astype("float64") + turned * sin[:, None], atol=2e-6)
    assert same_bits(rotary(isa, heads, dim)(x[-1:], cos[-1:], sin[-1:]), actual[-1:])


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(isa, dtype):
    random = np.random.default_rng(0)
    weight = round_to(random.standard_normal((70, 50)), dtype)
    run = compile_one(
        isa, [Input("weight", weight.shape, dtype), Input("tokens", (size("n"),), "int32")], lambda w, t: relax.op.take(w, t, axis=0)
    )
    for n in (1, 70, 900):
        tokens = random.integers(0, 70, n).astype("int32")
        assert same_bits(run(weight, tokens), weight[tokens])
