"""SmolLM2 in f32 against transformers on the same dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cupola
from tests.conftest import Compiled
from tests.e2e.texts import text_of

LENGTHS = ((5, 17, 1000), (9, 100, 600), (33, 64, 200, 333))  # of prompts, in tokens; each turn has some
GREEDY = cupola.SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
TIE = 1e-3  # logits closer than this may come in either order


@pytest.fixture(scope="module")
def llm(smollm2: Compiled) -> cupola.LLM:
    return cupola.LLM(smollm2.path)


def prompts_of(llm: cupola.LLM, lengths: tuple[int, ...]) -> list[list[int]]:
    prompts = [llm.tokenize(text_of(3 + length // 12, first=i))[:length] for i, length in enumerate(lengths)]
    assert tuple(map(len, prompts)) == lengths
    return prompts


@pytest.mark.by_turns
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_prompts_and_decoding_match_transformers(llm: cupola.LLM, lengths: tuple[int, ...], reference: Callable[[list[int]], Any]) -> None:
    """Our continuation is fed to transformers, which must agree with every token, unless its first two are nearly level."""
    prompts, errors, num_ties = prompts_of(llm, lengths), [], 0
    for prompt, output in zip(prompts, llm.generate(prompts, GREEDY), strict=True):
        chosen = list(output.outputs[0].token_ids)
        assert len(chosen) == GREEDY.max_tokens
        logits = reference(prompt + chosen[:-1])
        errors.append(float(np.abs(llm.logits(prompt) - logits[: len(prompt)]).max()))
        for row, token in zip(logits[len(prompt) - 1 :], chosen, strict=True):
            second, best = np.sort(row)[-2:]
            num_ties += token != int(row.argmax())
            assert token == int(row.argmax()) or (best - second < TIE and row[token] == second)
    print("largest errors:", [f"{error:.1e}" for error in errors])
    assert max(errors) < 2e-3 and num_ties <= 2
