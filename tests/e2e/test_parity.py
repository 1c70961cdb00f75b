"""SmolLM2 in f32 against transformers on the same dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cupola
from tests.conftest import Compiled
from tests.e2e.texts import text_of

LENGTHS = (5, 9, 17, 33, 64, 100, 200, 333, 600, 1000)  # tokens
GREEDY = cupola.SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
TIE = 1e-3  # logits closer than this may come in either order


@pytest.fixture(scope="module")
def llm(smollm2: Compiled) -> cupola.LLM:
    return cupola.LLM(smollm2.path)


@pytest.fixture(scope="module")
def prompts(llm: cupola.LLM) -> list[list[int]]:
    return [llm.tokenize(text_of(3 + length // 12, first=i))[:length] for i, length in enumerate(LENGTHS)]


def test_prompts_have_the_lengths_that_they_should(prompts: list[list[int]]) -> None:
    assert tuple(map(len, prompts)) == LENGTHS


def test_logits_match_transformers(llm: cupola.LLM, prompts: list[list[int]], reference: Callable[[list[int]], Any]) -> None:
    errors = [float(np.abs(llm.logits(prompt) - reference(prompt)).max()) for prompt in prompts]
    print("largest errors:", [f"{error:.1e}" for error in errors])
    assert max(errors) < 2e-3


def test_greedy_tokens_match_transformers(llm: cupola.LLM, prompts: list[list[int]], reference: Callable[[list[int]], Any]) -> None:
    """Our continuation is fed to transformers, which must agree with every token, unless its first two are nearly level."""
    num_ties = 0
    for prompt, output in zip(prompts, llm.generate(prompts, GREEDY), strict=True):
        chosen = list(output.outputs[0].token_ids)
        assert len(chosen) == GREEDY.max_tokens
        logits = reference(prompt + chosen[:-1])[len(prompt) - 1 :]
        for row, token in zip(logits, chosen, strict=True):
            second, best = np.sort(row)[-2:]
            num_ties += token != int(row.argmax())
            assert token == int(row.argmax()) or (best - second < TIE and row[token] == second)
    assert num_ties <= 2
