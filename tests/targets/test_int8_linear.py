"""Quantized weights times rounded activations, and rows of quantized tables, executed against float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from cupola.targets.ops import GROUP, Embedding, GatedLinear, Linear
from tests.targets.harness import RUNNABLE, RUNNABLE_INT8, Input, compile_one, same_bits, size

EPSILON = 1e-5
KINDS = {"w4": (np.uint8, False), "w4 with mins": (np.uint8, True), "w8": (np.int8, False)}
# outputs, depth, gated, norm, bias and residual
SHAPES = [(70, 96, False, False, True), (48, 808, False, True, False), (40, 80, True, True, False), (3, 32, False, False, False)]


def random_weight(random, rows, k, kind):
    dtype, has_mins = KINDS[kind]
    padded = -(-k // GROUP) * GROUP
    low, high = (0, 16) if dtype == np.uint8 else (-128, 128)
    codes = random.integers(low, high, (rows, padded)).astype(dtype)
    scales = (random.random((rows, padded // GROUP)) * 0.02).astype("float16")
    return codes, scales, (random.standard_normal(scales.shape) * 0.05).astype("float16") if has_mins else None


def dequantized(codes, scales, mins):
    """In float64, [N, K]."""
    values = codes.astype("float64") - (8 if codes.dtype == np.uint8 and mins is None else 0)
    values *= np.repeat(scales.astype("float64"), GROUP, axis=1)
    return values if mins is None else values + np.repeat(mins.astype("float64"), GROUP, axis=1)


def rounded(x, norm, padded):
    """Rows as the kernels see them, in float64: normalized, then int8 in groups."""
    x = x.astype("float64")
    if norm is not None:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * norm
    groups = np.pad(x, ((0, 0), (0, padded - x.shape[1]))).reshape(len(x), -1, GROUP)
    step = np.abs(groups).max(-1, keepdims=True) / 127
    return (np.rint(np.divide(groups, step, where=step > 0, out=np.zeros_like(groups))) * step).reshape(len(x), -1)


@functools.cache
def kernel(isa, kind, shape):
    n, k, gated, norm, extras = shape
    rows, padded, m = 2 * n if gated else n, -(-k // GROUP) * GROUP, size("m")
    dtype, has_mins = KINDS[kind]
    inputs = [Input("x", (m, k)), Input("codes", (rows, padded), np.dtype(dtype).name), Input("scales", (rows, padded // GROUP), "float16")]
    inputs += [Input("mins", (rows, padded // GROUP), "float16")] * has_mins + [Input("norm", (k,))] * norm
    inputs += [Input("bias", (n,)), Input("residual", (m, n))] * extras

    def make(x, codes, scales, *rest):
        rest = list(rest)
        mins, factors = (rest.pop(0) if given else None for given in (has_mins, norm))
        bias, residual = rest or (None, None)
        common = {"scales": scales, "mins": mins, "norm": factors, "epsilon": EPSILON, "quantize_x": 1}
        op = GatedLinear(x, codes, bias, "silu", **common) if gated else Linear(x, codes, bias, residual, "", **common)
        return op.emit(relax.TensorType((m, n), "float32"))

    return compile_one(isa, inputs, make)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", RUNNABLE_INT8)
@settings(max_examples=6)
@given(rows=st.integers(1, 110), part=st.integers(0, 109), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_products(isa, kind, rows, part, shape, seed):
    n, k, gated, norm, extras = shape
    random = np.random.default_rng(seed)
    weight = random_weight(random, 2 * n if gated else n, k, kind)
    x, residual = random.standard_normal((rows, k)).astype("float32"), random.standard_normal((rows, n)).astype("float32")
    factors, bias = random.standard_normal(k).astype("float32"), random.standard_normal(n).astype("float32")

    def run(rows):
        arrays = [x[rows], *(array for array in weight if array is not None), *([factors] * norm), *([bias, residual[rows]] * extras)]
        return kernel(isa, kind, shape)(*arrays)

    expected = rounded(x, factors if norm else None, weight[0].shape[1]) @ dequantized(*weight).T
    if gated:
        expected = expected[:, :n] / (1 + np.exp(-expected[:, :n])) * expected[:, n:]
    if extras:
        expected = expected + bias + residual
    actual = run(slice(None))
    # An activation that lies within float32's error of the middle between two integers may round to either.
    close = np.abs(actual - expected) <= 1e-5 * np.abs(expected).max() + 1e-5 * np.abs(expected)
    assert close.mean() > 0.98 and np.abs(actual - expected).max() <= 0.02 * np.abs(expected).max()
    few = slice(part % rows, part % rows + 3)
    assert same_bits(run(few), actual[few])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", RUNNABLE)
def test_rows_of_a_table(isa, kind):
    random = np.random.default_rng(0)
    weight = random_weight(random, 70, 80, kind)
    tokens = random.integers(0, 70, 23).astype("int32")
    inputs = [Input("codes", weight[0].shape, weight[0].dtype.name), Input("scales", weight[1].shape, "float16")]
    n = size("n")
    inputs += [Input("mins", weight[1].shape, "float16")] * (weight[2] is not None) + [Input("tokens", (n,), "int32")]

    def make(codes, scales, *rest):
        *mins, ids = rest
        return Embedding(codes, scales, mins[0] if mins else None, ids).emit(relax.TensorType((n, 80), "float32"))

    run = compile_one(isa, inputs, make)
    actual = run(*(array for array in weight if array is not None), tokens)
    np.testing.assert_allclose(actual, dequantized(*weight)[tokens, :80], rtol=1e-6, atol=1e-7)
