"""Quantized models: what is computed, against transformers on the values that the codes stand for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from cupola.passes.schemes import SCHEMES
from tests.e2e.stored_model import compiled, distances, logits_of, prompts_of, tiny_model

WIDTHS = {
    "whole groups": {},
    "odd widths": {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3, "num_key_value_heads": 1},
}


@pytest.mark.by_turns
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("quant", ["w8a8", "w4a8", "w8a16", "w4a16", "f8a16"])
def test_logits_are_those_of_the_stored_weights(quant: str, widths: str, tmp_path: Path) -> None:
    off = distances(quant, tmp_path, **WIDTHS[widths])
    assert np.median(off) < 1e-6 and off.max() < 1e-2


@pytest.mark.by_turns
@pytest.mark.parametrize("kind", ["w4a16", "w4a8"])
def test_larger_groups_lose_more(kind: str, tmp_path: Path) -> None:
    """Of the logits, against the weights that nobody quantized; by so little that a wrong scale would show."""
    model = tiny_model(hidden_size=256, intermediate_size=512)
    expected, prompts = logits_of(model), prompts_of(model)
    errors = []
    for name, scheme in SCHEMES.items():
        if name.startswith(kind):
            llm = compiled(model, name, tmp_path)
            off = np.stack([llm.logits(prompt.tolist()) for prompt in prompts]) - expected
            errors.append((scheme.group_size, float(np.sqrt((off**2).mean() / expected.var()))))
    assert [size for size, _ in errors] == sorted(size for size, _ in errors)
    assert all(smaller[1] < larger[1] < 1.2 * smaller[1] for smaller, larger in itertools.pairwise(errors)), errors
