"""Attention of a few tokens of a sequence in one step: the bits of as many steps of one token, with tiles of bfloat16 too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cupola.targets.cpu.attention.paged import FEW
from cupola.targets.cpu.isa import ISAS, runs_here
from tests.targets.cpu.test_attention import Sequences, Shape
from tests.targets.harness import same_bits

TILES = [isa for isa in ISAS if isa.bf16_tiles]
PLAIN = Shape(6, 2, 64, 64, 16, rotary_dim=64, joined=True)
SHAPES = [
    *[replace(PLAIN, dtype=dtype) for dtype in ("bfloat16", "int8", "float32", "float16")],
    replace(PLAIN, heads=2, dtype="bfloat16", window=20, sinks=True),
    replace(PLAIN, heads=14, groups=1, dtype="int8", window=150, softcap=5.0),
]


@pytest.mark.parametrize("isa", TILES, ids=lambda isa: isa.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_few_tokens_have_the_bits_of_one_by_one(isa, shape):
    """One sequence brings 2, 3 … tokens a step, each after a prompt of many, beside others that bring one, few and many."""
    if not runs_here(isa):
        pytest.skip(f"this machine has no {isa.name}")
    sizes, prompts = range(2, FEW + 1), (250, 40, 3)
    lengths = [prompt + sum(sizes) for prompt in prompts]
    steps, drafts = (Sequences(isa.name, shape, lengths, 0) for _ in range(2))
    for sequences in (steps, drafts):
        for i, prompt in enumerate(prompts):
            sequences.run((i, 0, prompt))
    expected = np.concatenate([steps.run((0, t, t + 1)) for t in range(prompts[0], lengths[0])])
    found, done = [], list(prompts)
    for size in sizes:
        ends = [done[0] + size, done[1] + 1, done[2] + min(2 * size, lengths[2] - done[2])]
        found.append(drafts.run(*[(i, start, end) for i, (start, end) in enumerate(zip(done, ends, strict=True)) if end > start])[:size])
        done = ends
    assert same_bits(np.concatenate(found), expected)
