"""Paged attention, executed against float64, and bit for bit against itself under other batches."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from cupola.targets.cpu.isa import runs_here, with_own_kernels
from cupola.targets.ops import PagedAttention
from cupola.targets.testing.references import BF16_ROUNDING, INT16_ROUNDING
from tests.targets import harness
from tests.targets.harness import RUNNABLE, Input, compile_one, same_bits, size, target_of

OWN = {  # instruction sets with kernels of their own, by type of pages; of others those of float32
    "int8": [isa for isa in with_own_kernels(multiplies_int8=True) if runs_here(isa)],
    "bfloat16": [isa for isa in with_own_kernels(multiplies_int8=False, in_bf16=True) if runs_here(isa)],
}
DTYPES = {**harness.DTYPES, "int8": np.dtype("int8")}


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
    rotary_dim: int = 0
    joined: bool = False  # q, k and v are columns of one matrix

    @property
    def pages(self):
        """The shapes of a block's keys and values for one head; int8 by pairs."""
        side = 2 if self.dtype == "int8" else 1
        return (self.key_dim // side, self.block * side), (self.block // side, self.value_dim * side)

    @property
    def widths(self):
        return self.heads * self.key_dim, self.groups * self.key_dim, self.groups * self.value_dim

    @property
    def starts(self):
        return tuple(np.cumsum([5, *self.widths])[:3].tolist()) if self.joined else (0, 0, 0)

    @property
    def columns(self):
        return (sum(self.widths) + 8,) * 3 if self.joined else self.widths


SHAPES = [
    Shape(9, 3, 64, 64, 16, rotary_dim=64, joined=True),
    Shape(2, 2, 80, 80, 16, "float16", slopes=True),
    Shape(4, 1, 16, 16, 32, "bfloat16", window=20, sinks=True, rotary_dim=8),
    Shape(21, 1, 10, 20, 4, softcap=5.0, window=150, joined=True),
    Shape(4, 2, 16, 32, 256, "float16", rotary_dim=16),
    Shape(6, 2, 64, 48, 16, "int8", rotary_dim=32, joined=True),
    Shape(3, 3, 16, 16, 8, "int8"),
    Shape(4, 2, 64, 32, 32, "bfloat16", rotary_dim=32, joined=True),
    Shape(6, 3, 10, 22, 4, "bfloat16"),
]
EXACT = {dtype: [isa.name for isa in isas if isa.batch_invariant] for dtype, isas in OWN.items()}
EACH = [(isa, shape) for shape in SHAPES for isa in EXACT.get(shape.dtype, RUNNABLE)]
LAYERS, LAYER = 2, 1
ROUNDING = {"float32": 1e-6, "float16": 2.0**-11 + 1e-6, "bfloat16": 2.0**-8 + 1e-6}


@functools.cache
def attention(isa, s):
    n, b, blocks = size("n"), size("b"), size("blocks")
    inputs = [Input(name, (n, columns)) for name, columns in zip("qkv", s.columns, strict=True)]
    inputs += [Input("cos", (n, s.rotary_dim)), Input("sin", (n, s.rotary_dim))] * bool(s.rotary_dim)
    inputs += [
        *[Input(name, (LAYERS, blocks, s.groups, *page), s.dtype) for name, page in zip(("k_pages", "v_pages"), s.pages, strict=True)],
        *[Input(name, (LAYERS, blocks, s.groups, s.block)) for name in ("k_scales", "v_scales") if s.dtype == "int8"],
        Input("slots", (n,), "int32"),
        Input("query_starts", (size("b1"),), "int32"),
        Input("context_lens", (b,), "int32"),
        Input("block_tables", (b, size("max_blocks")), "int32"),
    ]
    inputs += [Input("slopes", (s.heads,))] * s.slopes + [Input("sinks", (s.heads,))] * s.sinks

    def make(*tensors):
        given = dict(zip([i.name for i in inputs], tensors, strict=True))
        names = [field.name for field in fields(PagedAttention)]
        numbers = dict(zip(("q_start", "k_start", "v_start"), s.starts, strict=True))
        numbers |= {"layer": LAYER, "scale": s.key_dim**-0.5, "window": s.window, "softcap": s.softcap}
        given["pools"] = tuple(given.pop(name) for name in ("k_pages", "v_pages", "k_scales", "v_scales") if name in given)
        numbers["kv_dtype"] = s.dtype
        op = PagedAttention(**{name: numbers.get(name, given.get(name)) for name in names})
        return op.emit(relax.TensorType((n, s.heads * s.value_dim), "float32"))

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
        angles = np.arange(max(lengths))[:, None] * np.tile(0.5 ** np.arange(shape.rotary_dim // 2), 2)
        self.cos, self.sin = np.cos(angles).astype("float32"), np.sin(angles).astype("float32")
        width = max(-(-n // shape.block) for n in lengths)
        num_blocks = width * len(lengths) + 2
        self.tables = self.random.permutation(num_blocks)[: width * len(lengths)].reshape(-1, width).astype("int32")
        rows, dtype = (LAYERS, num_blocks, shape.groups), DTYPES[shape.dtype]
        shapes = [(*rows, *page) for page in shape.pages]
        if shape.dtype == "int8":
            self.pools = [np.full(pool, 99, dtype) for pool in shapes]
            self.pools += [np.full((*rows, shape.block), np.nan, "float32") for _ in range(2)]
        else:
            self.pools = [np.full(pool, np.nan, dtype) for pool in shapes]

    def run(self, *chunks):
        """One call, over chunks of sequences, each (sequence, from, to)."""
        s = self.shape
        cut = [np.concatenate([tensor[i][a:b] for i, a, b in chunks]) for tensor in (self.q, self.k, self.v)]
        cut = [tensor.reshape(len(tensor), -1) for tensor in cut]
        if s.joined:
            n = len(cut[0])
            cut = [np.concatenate([np.full((n, 5), np.nan, "float32"), *cut, np.full((n, 3), np.nan, "float32")], 1)] * 3
        angles = [np.concatenate([table[a:b] for _, a, b in chunks]) for table in (self.cos, self.sin)] if s.rotary_dim else []
        slots = np.concatenate([self.tables[i][np.arange(a, b) // s.block] * s.block + np.arange(a, b) % s.block for i, a, b in chunks])
        return self.call([*cut, *angles], slots, chunks).reshape(-1, s.heads, s.value_dim)

    def call(self, arrays, slots, chunks):
        starts = np.cumsum([0, *(b - a for _, a, b in chunks)])
        lens, tables = np.array([b for _, _, b in chunks]), self.tables[[i for i, _, _ in chunks]]
        integers = [array.astype("int32") for array in (slots, starts, lens, tables)]
        return attention(self.isa, self.shape)(*arrays, *self.pools, *integers, *self.extras)

    def rotated(self, x):
        """Halves of the leading dimensions rotated, in float64."""
        x, half = x.astype("float64"), self.shape.rotary_dim // 2
        cos, sin = (table[: len(x), None].astype("float64") for table in (self.cos, self.sin))
        low, high, rest = np.split(x, [half, 2 * half], axis=-1)
        turned = np.concatenate([-high, low], -1)
        return np.concatenate([x[..., : 2 * half] * cos + turned * sin, rest], -1)

    def stored(self, i):
        """Keys and values of a sequence as the pages hold them: [n, groups, dim] each."""
        block, offset = np.divmod(np.arange(self.lengths[i]), self.shape.block)
        blocks = self.tables[i][block]
        return [numbers[blocks, offset] for numbers in target_of(self.isa).state.read(self.pools, LAYER).numbers()]

    def reference(self, i):
        """A sequence's expected rows, and how far off they may be."""
        s = self.shape
        extras = list(self.extras)
        slopes = extras.pop(0)[:, None, None].astype("float64") if s.slopes else 0.0
        k, v = (np.repeat(x.astype("float64"), s.heads // s.groups, 1) for x in self.stored(i))
        scores = np.einsum("qhd,khd->hqk", self.rotated(self.q[i]), k) * s.key_dim**-0.5
        scores = s.softcap * np.tanh(scores / s.softcap) if s.softcap else scores
        distance = np.arange(self.lengths[i])[None] - np.arange(self.lengths[i])[:, None]
        seen = (distance <= 0) & ((distance > -s.window) if s.window else True)
        scores = np.where(seen, scores + slopes * distance, -np.inf)
        highest = scores.max(-1, keepdims=True)
        weights = np.exp(scores - highest)
        total = weights.sum(-1, keepdims=True) + (np.exp(extras[0][:, None, None] - highest) if s.sinks else 0)
        value = np.einsum("hqk,khd->qhd", weights / total, v)
        in_pairs = s.dtype == "bfloat16" and target_of(self.isa).abilities.bf16_attention
        allowed = self.int16_rounding if s.dtype == "int8" else self.bf16_rounding if in_pairs else lambda *_: 0.0
        rounding = allowed(self.rotated(self.q[i]), k, v, weights / total, seen)
        return value, 3e-6 + 1e-5 * np.abs(value) + rounding

    def bf16_rounding(self, q, k, v, weights, seen):
        """The error allowed because queries and weights are rounded to bfloat16."""
        scores = weights * np.einsum("qhd,khd->hqk", np.abs(q), np.abs(k)) * self.shape.key_dim**-0.5
        magnitude = np.einsum("hqk,khd->qhd", weights, np.abs(v))
        by_queries = np.einsum("hqk,khd->qhd", scores, np.abs(v)) + scores.sum(-1).T[:, :, None] * magnitude
        return BF16_ROUNDING * (by_queries + magnitude)

    def int16_rounding(self, q, k, v, weights, seen):
        """The error allowed because queries, and weights times the steps of values, are quantized to int16."""
        scores = np.einsum("qh,kh->hqk", np.abs(q).max(-1), np.abs(k).sum(-1)) * self.shape.key_dim**-0.5
        steps = np.abs(v).max(-1, keepdims=True) / 127
        by_queries = np.einsum("hqk,khd->qhd", weights * scores, np.abs(v) + np.einsum("hqk,khd->qhd", weights, np.abs(v)).max())
        by_weights = np.einsum("hq,qk,khd->qhd", (weights * steps[..., 0].T[:, None]).max(-1), seen, np.abs(v) / steps)
        return INT16_ROUNDING * (by_queries + by_weights)


@pytest.mark.by_turns
@pytest.mark.parametrize(("isa", "shape"), EACH, ids=str)
@settings(max_examples=4)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 199), max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention(isa, shape, lengths, cuts, seed):
    alone = Sequences(isa, shape, lengths, seed)
    whole = [alone.run((i, 0, n)) for i, n in enumerate(lengths)]
    for i, output in enumerate(whole):
        value, slack = alone.reference(i)
        assert (np.abs(output - value) <= slack).all()
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


@pytest.mark.parametrize(("isa", "shape"), [case for case in EACH if case[1] in (SHAPES[0], SHAPES[7])], ids=str)
def test_token_by_token_and_negative_slots(isa, shape):
    whole, steps = (Sequences(isa, shape, [270], 0) for _ in range(2))
    expected = whole.run((0, 0, 270))
    assert same_bits(np.concatenate([steps.run((0, t, t + 1)) for t in range(270)]), expected)
    before = whole.pools[0].tobytes()
    joined, angle = np.ones((1, shape.columns[0]), "float32"), np.ones((1, shape.rotary_dim), "float32")
    whole.call([joined, joined, joined, angle, angle], np.array([-1]), [(0, 269, 270)])
    assert whole.pools[0].tobytes() == before


@pytest.mark.by_turns
@pytest.mark.parametrize(("isa", "shape"), EACH, ids=str)
def test_pages_hold_rounded_keys_and_values(isa, shape):
    sequences = Sequences(isa, shape, [41], 1)
    sequences.run((0, 0, 41))
    k, v = sequences.stored(0)
    for stored, exact in ((k, sequences.rotated(sequences.k[0])), (v, sequences.v[0].astype("float64"))):
        off = np.abs(exact).max(-1, keepdims=True) / 254 if shape.dtype == "int8" else np.abs(exact) * ROUNDING[shape.dtype]
        assert (np.abs(stored.astype("float64") - exact) <= off * (1 + 1e-5) + 1e-6).all()


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("isa", "shape"), [(isa.name, shape) for shape in SHAPES if shape.key_dim == 64 for isa in OWN.get(shape.dtype, ())], ids=str
)
def test_pages_do_not_depend_on_how_tokens_came(isa, shape):
    """Keys of bfloat16 and int8 are written 16 at a time where these come whole."""
    whole, parts = (Sequences(isa, shape, [75, 40], 0) for _ in range(2))
    whole.run((0, 0, 75), (1, 0, 40))
    for chunks in [(0, 0, 5), (1, 0, 16)], [(0, 5, 37), (1, 16, 17)], [(0, 37, 75), (1, 17, 40)]:
        parts.run(*chunks)
    for mine, other in zip(whole.pools, parts.pools, strict=True):
        assert mine.tobytes() == other.tobytes()


@pytest.mark.parametrize("isa", RUNNABLE)
def test_int8_holds_zeros_and_the_largest_exactly(isa):
    shape = next(shape for shape in SHAPES if shape.dtype == "int8")
    sequences = Sequences(isa, shape, [3], 1)
    sequences.v[0][1] = 0.0
    sequences.run((0, 0, 3))
    _, v = sequences.stored(0)
    assert (v[1] == 0).all()
    largest = np.abs(sequences.v[0]).argmax(-1)
    for token, head in ((0, 0), (2, 1)):
        place = token, head, largest[token, head]
        assert v[place] == pytest.approx(sequences.v[0][place], rel=1e-6)
