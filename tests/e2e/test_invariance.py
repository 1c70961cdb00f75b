"""Greedy answers do not depend on what else the engine does: batch, chunks, steps at once, prefix cache, preemption."""

from __future__ import annotations

from dataclasses import replace

import pytest

import cupola
from tests.conftest import Compiled
from tests.e2e.texts import text_of

GREEDY = cupola.SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
SENTENCES_OF = (1, 9, 2, 5, 1, 12, 3, 7)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    shared = text_of(2)  # equal beginnings, for the prefix cache
    return [shared + " " + text_of(count, first=i) if i % 2 else text_of(count, first=i) for i, count in enumerate(SENTENCES_OF)]


@pytest.fixture(scope="module")
def alone(smollm2: Compiled, prompts: list[str]) -> list[tuple[int, ...]]:
    llm = cupola.LLM(smollm2.path, enable_prefix_caching=False)
    return [answers(llm, [prompt])[0] for prompt in prompts]


def answers(llm: cupola.LLM, prompts: list[str]) -> list[tuple[int, ...]]:
    outputs = [tuple(output.outputs[0].token_ids) for output in llm.generate(prompts, GREEDY)]
    llm.engine.check_idle()  # no block is leaked
    return outputs


@pytest.mark.by_turns
@pytest.mark.parametrize("caching", [False, True], ids=["no-cache", "cache"])
@pytest.mark.parametrize("chunk", [64, 512])
def test_in_a_batch_of_eight(smollm2: Compiled, prompts: list[str], alone: list[tuple[int, ...]], chunk: int, caching: bool) -> None:
    llm = cupola.LLM(smollm2.path, max_num_seqs=8, max_num_batched_tokens=chunk, enable_prefix_caching=caching)
    assert answers(llm, prompts) == alone
    assert answers(llm, prompts) == alone  # this time, with a cache, from what it holds


@pytest.mark.by_turns
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_in_chunks(smollm2: Compiled, prompts: list[str], alone: list[tuple[int, ...]], chunk: int) -> None:
    llm = cupola.LLM(smollm2.path, max_num_seqs=1, max_num_batched_tokens=chunk)
    chosen = range(len(prompts)) if chunk > 1 else [0, 3]  # one token at a time is slow
    assert answers(llm, [prompts[i] for i in chosen]) == [alone[i] for i in chosen]


@pytest.mark.by_turns
@pytest.mark.parametrize("together", [False, True], ids=["one-by-one", "together"])
def test_in_several_steps_at_once(
    smollm2: Compiled, prompts: list[str], alone: list[tuple[int, ...]], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cupola.runtime.engine.engine.PATIENCE", 60.0)  # f32 takes longer than 16 ms
    llm = cupola.LLM(smollm2.path, max_num_seqs=8, enable_prefix_caching=False)
    executor, num_steps = llm.engine.executor, []
    submit = executor.submit
    monkeypatch.setattr(executor, "submit", lambda batch, plan: num_steps.append(plan.num_steps) or submit(batch, plan))
    assert [answer for batch in ([prompts] if together else [[prompt] for prompt in prompts]) for answer in answers(llm, batch)] == alone
    assert max(num_steps) == 8


@pytest.mark.by_turns
def test_under_preemption(smollm2: Compiled, prompts: list[str]) -> None:
    """The pool holds little more than the longest sequence, so that sequences that grow push others out."""
    params, short = replace(GREEDY, max_tokens=64), prompts[::2]
    kv = cupola.Artifact.open(smollm2.path, verify=False).manifest.kv
    large = cupola.LLM(smollm2.path, max_num_seqs=1, enable_prefix_caching=False)
    longest = max(len(large.tokenize(prompt)) for prompt in short) + params.max_tokens
    small = cupola.LLM(smollm2.path, kv_memory=-(-longest // kv.block_size) * kv.bytes_per_block, enable_prefix_caching=False)
    outputs = small.generate(short, params)
    assert [output.outputs[0].token_ids for output in outputs] == [o.outputs[0].token_ids for o in large.generate(short, params)]
    assert sum(output.metrics.num_preemptions for output in outputs if output.metrics) > 0
    small.engine.check_idle()


def test_logits_are_the_same_bits(smollm2: Compiled, prompts: list[str]) -> None:
    whole, pieces = (cupola.LLM(smollm2.path, max_num_batched_tokens=size) for size in (512, 7))
    ids = whole.tokenize(prompts[3])
    assert (whole.logits(ids) == pieces.logits(ids)).all()
