"""Speculative decoding with SmolLM2: the same answers as without, in fewer steps of the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import cupola
import cupola.runtime.engine.speculation as speculation
from cupola.runtime.errors import OptionError
from tests.conftest import Compiled
from tests.runtime.tiny_artifact import make_artifact

TEXT = "for i in range(3):\n    print(i)\n    print(i + 1)\nfor i in range(3):\n    print(i)\n"
PROMPTS = [TEXT, "The capital of France is", "one two three four one two three four one"]
KINDS = [
    {"temperature": 0.0, "logprobs": 1}, {"temperature": 0.0}, {"temperature": 0.8, "seed": 1}, {"temperature": 1.0, "top_k": 5, "seed": 2},
    {"temperature": 0.0, "repetition_penalty": 1.2}, {"temperature": 0.7, "seed": 3, "n": 2},
]  # fmt: skip


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft is used, whatever this machine's times are."""
    monkeypatch.setattr(speculation, "MIN_GAIN", 0.0)
    monkeypatch.setattr(speculation.StepCosts, "table", lambda _, most: [1.0] * (most + 1))


def answers(llm: cupola.LLM, together: bool) -> Iterator[object]:
    jobs = [(prompt, cupola.SamplingParams(max_tokens=24, **kind)) for prompt in PROMPTS for kind in KINDS]
    for batch in [jobs] if together else [[job] for job in jobs]:
        outputs = llm.generate([prompt for prompt, _ in batch], [params for _, params in batch])
        yield from ([(one.token_ids, one.text, one.logprobs, one.finish_reason) for one in output.outputs] for output in outputs)


@pytest.fixture(scope="module")
def plain(smollm2: Compiled) -> list[object]:
    return list(answers(cupola.LLM(smollm2.path, max_num_seqs=1, enable_prefix_caching=False), together=False))


@pytest.mark.parametrize("name", ["ngram", "suffix", "draft"])
def test_answers_are_the_same(smollm2: Compiled, plain: list[object], eager: None, name: str) -> None:
    """Also bits of log-probabilities: this artifact's K and V are float32. As a draft model it knows its own tokens."""
    llm = cupola.LLM(smollm2.path, max_num_seqs=4, speculative=f"draft:{smollm2.path}" if name == "draft" else name)
    assert list(answers(llm, together=True)) == plain
    stats = llm.stats()
    assert stats.num_accepted_tokens > {"ngram": 30, "suffix": 30, "draft": 150}[name]
    assert llm.notes == ()


def test_a_function_drafts(smollm2: Compiled, plain: list[object], eager: None) -> None:
    llm = cupola.LLM(smollm2.path, max_num_seqs=4, speculative=lambda token_ids, most: token_ids[-7:])
    assert list(answers(llm, together=True)) == plain
    assert llm.stats().num_draft_tokens > 0


def test_a_model_of_another_vocabulary_is_refused(smollm2: Compiled, tmp_path) -> None:
    other = make_artifact(tmp_path / "other")
    with pytest.raises(OptionError, match="another vocabulary"):
        cupola.LLM(smollm2.path, speculative=f"draft:{other.path}")


@pytest.mark.parametrize("bad", ["", "ngrams", "draft:", 3, ["ngram"]])
def test_what_is_no_proposer_is_refused(smollm2: Compiled, bad: object) -> None:
    with pytest.raises(OptionError, match="speculative: is .*give one of ngram, suffix, auto, or draft:"):
        cupola.LLM(smollm2.path, speculative=bad)
