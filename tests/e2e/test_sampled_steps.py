"""Sampled requests take several steps of the model at once: the tokens of single steps, and of the host's sampler, seed by seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupola
import cupola.runtime.engine.engine as module
from tests.e2e.tiny_models import SIZES, tiny_model

WAYS: list[dict[str, Any]] = [
    {}, {"temperature": 0.3}, {"temperature": 1.6, "top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 2.0, "top_p": 0.95},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02}, {"top_k": 1}, {"temperature": 0.0},
]  # fmt: skip
SINGLE: list[dict[str, Any]] = [{"repetition_penalty": 1.2}, {"logprobs": 1}, {"logit_bias": {5: 1.0}}, {"typical_p": 0.9}]
NUM_SEEDS, NUM_TOKENS = 30, 25


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 60.0)  # whatever else this machine does


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sampled")
    tiny_model("llama", **SIZES).save_pretrained(path / "model")
    return cupola.compile(path / "model", out=path / "artifact", quant="f32").path


def answers(llm: cupola.LLM, ways: list[dict[str, Any]], seeds: range) -> list[list[int]]:
    shared = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "detokenize": False}
    params = [cupola.SamplingParams(**{**shared, "seed": seed, **way}) for way in ways for seed in seeds]
    prompts = [{"prompt_token_ids": np.random.default_rng(i).integers(4, 250, 3 + i % 7).tolist()} for i in range(len(params))]
    batch, found = llm.engine.config.max_num_seqs, []
    for at in range(0, len(params), batch):  # while some wait, nobody goes on by itself
        outputs = llm.generate(prompts[at : at + batch], params[at : at + batch])
        found += [list(output.outputs[0].token_ids) for output in outputs]
    return found


def steps_and_answers(llm: cupola.LLM, ways: list[dict[str, Any]], seeds: range) -> tuple[int, list[list[int]]]:
    """How often the executor was asked, too."""
    executor, count = llm.engine.executor, [0]
    submit = executor.submit

    def counting(*given: Any) -> Any:
        count[0] += 1
        return submit(*given)

    executor.submit = counting  # type: ignore[method-assign]
    try:
        found = answers(llm, ways, seeds)
    finally:
        executor.submit = submit  # type: ignore[method-assign]
    return count[0], found


@pytest.mark.parametrize("max_num_seqs", [1, 5])
def test_tokens_are_those_of_single_steps_and_of_the_hosts_sampler(folder: Path, max_num_seqs: int) -> None:
    several, single = (cupola.LLM(folder, max_num_seqs=max_num_seqs, num_scheduler_steps=count) for count in (8, 1))
    host = cupola.LLM(folder, max_num_seqs=max_num_seqs, num_scheduler_steps=1)
    host.engine.scheduler.draws_tokens = False
    num_steps, found = steps_and_answers(several, WAYS, range(NUM_SEEDS))
    num_single, expected = steps_and_answers(single, WAYS, range(NUM_SEEDS))
    assert found == expected == answers(host, WAYS, range(NUM_SEEDS))
    assert len({tuple(tokens) for tokens in found}) > 0.8 * len(found)
    assert num_steps < 0.25 * num_single


@pytest.mark.parametrize("way", SINGLE, ids=str)
def test_what_the_host_must_do_comes_a_step_at_a_time(folder: Path, way: dict[str, Any]) -> None:
    llm = cupola.LLM(folder, max_num_seqs=1)
    num_steps, [tokens] = steps_and_answers(llm, [way], range(1))
    assert num_steps == len(tokens) == NUM_TOKENS
    alone, _ = steps_and_answers(llm, [{}], range(1))
    assert alone < NUM_TOKENS / 4


def test_a_seed_says_the_same_with_log_probabilities(folder: Path) -> None:
    llm = cupola.LLM(folder, max_num_seqs=4)
    sampled = WAYS[:-2]
    assert answers(llm, sampled, range(5)) == answers(llm, [{**way, "logprobs": 0} for way in sampled], range(5))
