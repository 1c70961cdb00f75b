"""Paged attention, executed against float64, and bit for bit against itself under other batches."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from cupola.targets.ops import PagedAttention
from tests.targets.harness import DTYPES, RUNNABLE, Input, compile_one, same_bits, size


@dataclass(frozen=True)
class Shape:
    heads: int
    groups: int
    key_dim: int
    value_dim: int
    block: int
    dtype: str = "float32"
    window: int = 0
    softcap: float = 0.0
    slopes: bool = False
    sinks: bool = False


SHAPES = [
    Shape(9, 3, 64, 64, 16),
    Shape(2, 2, 80, 80, 16, "float16", slopes=True),
    Shape(4, 1, 16, 16, 32, "bfloat16", window=20, sinks=True),
    Shape(11, 1, 10, 20, 7, softcap=5.0, window=9),
    Shape(4, 2, 16, 32, 80),
]
LAYERS, LAYER = 2, 1


@functools.cache
def attention(isa, s):
    n, b, blocks = size("n"), size("b"), size("blocks")
    inputs = [
        Input("q", (n, s.heads, s.key_dim)),
        Input("k", (n, s.groups, s.key_dim)),
        Input("v", (n, s.groups, s.value_dim)),
        Input("k_pages", (LAYERS, blocks, s.groups, s.key_dim, s.block), s.dtype),
        Input("v_pages", (LAYERS, blocks, s.groups, s.block, s.value_dim), s.dtype),
        Input("slots", (n,), "int32"),
        Input("query_starts", (size("b1"),), "int32"),
        Input("context_lens", (b,), "int32"),
        Input("block_tables", (b, size("max_blocks")), "int32"),
    ]
    inputs += [Input("slopes", (s.heads,))] * s.slopes + [Input("sinks", (s.heads,))] * s.sinks

    def make(*tensors):
        extras = list(tensors[9:])
        slopes, sinks = (extras.pop(0) if wanted else None for wanted in (s.slopes, s.sinks))
        op = PagedAttention(*tensors[:9], slopes, sinks, LAYER, s.key_dim**-0.5, s.window, s.softcap)
        return op.emit(relax.TensorType((n, s.heads, s.value_dim), "float32"))

    return compile_one(isa, inputs, make)


class Sequences:
    """Random tokens of several sequences, and pages that nobody has written to: they hold NaN."""

    def __init__(self, isa, shape, lengths, seed):
        self.random, self.isa, self.shape, self.lengths = np.random.default_rng(seed), isa, shape, lengths
        self.q, self.k, self.v = (
            [self.random.standard_normal((n, heads, dim)).astype("float32") for n in lengths]
            for heads, dim in ((shape.heads, shape.key_dim), (shape.groups, shape.key_dim), (shape.groups, shape.value_dim))
        )
        self.extras = [(2.0 ** -np.arange(1, shape.heads + 1)).astype("float32")] * shape.slopes
        self.extras += [self.random.standard_normal(shape.heads).astype("float32")] * shape.sinks
        width = max(-(-n // shape.block) for n in lengths)
        num_blocks = width * len(lengths) + 2
        self.tables = self.random.permutation(num_blocks)[: width * len(lengths)].reshape(-1, width).astype("int32")
        rows, dtype = (LAYERS, num_blocks, shape.groups), DTYPES[shape.dtype]
        self.k_pages = tvm.runtime.tensor(np.full((*rows, shape.key_dim, shape.block), np.nan, dtype))
        self.v_pages = tvm.runtime.tensor(np.full((*rows, shape.block, shape.value_dim), np.nan, dtype))

    def run(self, *chunks):
        """One call, over chunks of sequences, each (sequence, from, to)."""
        cut = [np.concatenate([tensor[i][a:b] for i, a, b in chunks]) for tensor in (self.q, self.k, self.v)]
        block = self.shape.block
        slots = np.concatenate([self.tables[i][np.arange(a, b) // block] * block + np.arange(a, b) % block for i, a, b in chunks])
        starts = np.cumsum([0, *(b - a for _, a, b in chunks)])
        lens, tables = np.array([b for _, _, b in chunks]), self.tables[[i for i, _, _ in chunks]]
        integers = [array.astype("int32") for array in (slots, starts, lens, tables)]
        return attention(self.isa, self.shape)(*cut, self.k_pages, self.v_pages, *integers, *self.extras)

    def reference(self, i):
        s = self.shape
        extras = list(self.extras)
        slopes = extras.pop(0)[:, None, None].astype("float64") if s.slopes else 0.0
        k, v = (np.repeat(x[i].astype(DTYPES[s.dtype]).astype("float64"), s.heads // s.groups, 1) for x in (self.k, self.v))
        scores = np.einsum("qhd,khd->hqk", self.q[i].astype("float64"), k) * s.key_dim**-0.5
        scores = s.softcap * np.tanh(scores / s.softcap) if s.softcap else scores
        distance = np.arange(self.lengths[i])[None] - np.arange(self.lengths[i])[:, None]
        seen = (distance <= 0) & ((distance > -s.window) if s.window else True)
        scores = np.where(seen, scores + slopes * distance, -np.inf)
        highest = scores.max(-1, keepdims=True)
        weights = np.exp(scores - highest)
        total = weights.sum(-1, keepdims=True) + (np.exp(extras[0][:, None, None] - highest) if s.sinks else 0)
        return np.einsum("hqk,khd->qhd", weights / total, v)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=4)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 149), max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention(isa, shape, lengths, cuts, seed):
    alone = Sequences(isa, shape, lengths, seed)
    whole = [alone.run((i, 0, n)) for i, n in enumerate(lengths)]
    for i, output in enumerate(whole):
        np.testing.assert_allclose(output, alone.reference(i), atol=3e-6, rtol=1e-5)
    # The same tokens, all sequences in one batch, in chunks: the same bits.
    mixed = Sequences(isa, shape, lengths, seed)
    edges = [sorted({0, n, *(cut for cut in cuts if cut < n)}) for n in lengths]
    steps = max(len(e) for e in edges) - 1
    outputs = [[] for _ in lengths]
    for step in range(steps):
        chunks = [(i, e[step], e[step + 1]) for i, e in enumerate(edges) if step + 1 < len(e)]
        result = mixed.run(*chunks)
        for (i, _, _), part in zip(chunks, np.split(result, np.cumsum([b - a for _, a, b in chunks])[:-1]), strict=True):
            outputs[i].append(part)
    for expected, parts in zip(whole, outputs, strict=True):
        assert same_bits(np.concatenate(parts), expected)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_token_by_token_and_negative_slots(isa):
    shape = SHAPES[0]
    whole, steps = (Sequences(isa, shape, [70], 0) for _ in range(2))
    expected = whole.run((0, 0, 70))
    assert same_bits(np.concatenate([steps.run((0, t, t + 1)) for t in range(70)]), expected)
    before = whole.k_pages.numpy().tobytes()
    n = np.int32(1)
    whole_tables = whole.tables.astype("int32")
    arrays = (whole.q[0][:1], whole.k[0][:1] + 1, whole.v[0][:1], whole.k_pages, whole.v_pages, np.array([-1], "int32"))
    attention(isa, shape)(*arrays, np.array([0, n], "int32"), np.array([70], "int32"), whole_tables)
    assert whole.k_pages.numpy().tobytes() == before


@pytest.mark.parametrize("isa", RUNNABLE)
def test_pages_hold_rounded_keys_and_values(isa):
    for shape in SHAPES:
        sequences = Sequences(isa, shape, [41], 1)
        sequences.run((0, 0, 41))
        block, offset = sequences.tables[0][40 // shape.block], 40 % shape.block
        k, v = (x[0][40].astype(DTYPES[shape.dtype]) for x in (sequences.k, sequences.v))
        assert same_bits(sequences.k_pages.numpy()[LAYER, block, :, :, offset], k)
        assert same_bits(sequences.v_pages.numpy()[LAYER, block, :, offset], v)
