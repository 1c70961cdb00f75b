"""Speculative decoding over the fake model: the same tokens as without, whatever is drafted and whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupola.runtime.engine import speculation
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.outputs import RequestOutput
from cupola.runtime.engine.proposers.function import FunctionProposer
from cupola.runtime.engine.proposers.ngram import NGramProposer
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import EngineError
from tests.runtime.engine.speculating import Oracle, run_through, speculate
from tests.runtime.engine.test_draws import drawing_engine
from tests.runtime.fakes import BLOCK, MODEL, VOCAB, FakeExecutor, greedy_reference, make_engine, run_all

PROMPT = [3, 1, 4, 1, 5]
LONG = {"max_tokens": 30, "ignore_eos": True}
KINDS: list[dict[str, object]] = [
    {"temperature": 0}, {"temperature": 0, "ignore_eos": False, "stop_token_ids": list(range(20, 30))}, {"temperature": 0, "logprobs": 3},
    {"seed": 1}, {"seed": 2, "top_k": 7, "top_p": 0.9, "logprobs": 0}, {"seed": 3, "n": 3}, {"seed": 4, "min_p": 0.1, "min_tokens": 9},
    {"temperature": 0, "repetition_penalty": 1.7, "frequency_penalty": 0.5}, {"seed": 5, "presence_penalty": 1.0, "logit_bias": {3: 4.0}},
    {"seed": 6, "mirostat": 2, "mirostat_tau": 3.0}, {"temperature": 0, "dry_multiplier": 5.0, "dry_allowed_length": 0},
    {"seed": 7, "xtc_probability": 0.5, "typical_p": 0.8}, {"seed": 8, "allowed_token_ids": list(range(0, VOCAB, 3))},
    {"temperature": 0, "min_tokens": 5, "ignore_eos": False, "stop_token_ids": list(range(40))}, {"seed": 9, "prompt_logprobs": 1},
]  # fmt: skip
Found = list[tuple[list[int], object, str | None, int | str | None]]


def found(output: RequestOutput) -> Found:
    return [(one.token_ids, one.logprobs, one.finish_reason, one.stop_reason) for one in output.outputs]


def generate(engine: Engine, requests: Sequence[tuple[list[int], SamplingParams]]) -> list[Found]:
    for i, (prompt, params) in enumerate(requests):
        engine.add_request(str(i), prompt, params)
    outputs = run_all(engine)
    return [found(outputs[str(i)]) for i in range(len(requests))]


@cache
def expected() -> list[Found]:
    """The outputs that each of `requests` gets alone, without speculation."""
    return [generate(make_engine(enable_prefix_caching=False, max_num_batched_tokens=4096), [request])[0] for request in requests()]


@cache
def requests() -> list[tuple[list[int], SamplingParams]]:
    random = np.random.default_rng(3)
    prompts = [random.integers(0, VOCAB, random.integers(1, 17)).tolist() for _ in KINDS]
    given = [SamplingParams(**({"max_tokens": 30, "ignore_eos": True} | kind)) for kind in KINDS]
    return list(zip(prompts, given, strict=True))


def answers(chosen: Sequence[int]) -> Callable[[str], list[int]]:
    """The outputs to come, by the names of sequences of an engine whose requests are `chosen`."""
    return lambda name: expected()[chosen[int(name.partition(".")[0])]][int(name.partition(".")[2])][0]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=10),
    num_right=st.integers(0, 8),
    num_blocks=st.integers(14, 60),
    budget=st.sampled_from([1, 7, 16, 64]),
    max_num_seqs=st.integers(1, 8),
    caching=st.booleans(),
    num_swap_blocks=st.sampled_from([0, 6, 60]),
    failures=st.sets(st.integers(0, 30), max_size=3),
    aborted=st.integers(0, 20),
    num_others=st.integers(0, 2),
    windows=st.sampled_from([(0,), (0, 9)]),
    recurrent=st.booleans(),
)
def test_random_schedules(
    monkeypatch, chosen, num_right, num_blocks, budget, max_num_seqs, caching, num_swap_blocks, failures, aborted, num_others, windows,
    recurrent,
):  # fmt: skip
    """Batches, chunked prompts, preemption, swapping, the prefix cache, failed steps, windows, models that carry a state: with drafts each
    request gets what it gets alone."""
    options = {"max_num_batched_tokens": budget, "max_num_seqs": max_num_seqs, "enable_prefix_caching": caching}
    oracle = Oracle(answers(chosen), num_right, seed=budget, num_others=num_others)
    engine = speculate(make_engine(num_blocks, num_swap_blocks, windows, recurrent, **options), oracle, monkeypatch)
    for i, kind in enumerate(chosen):
        engine.add_request(str(i), *requests()[kind])
    outputs, step = run_through(engine, failures, aborted)
    assert not oracle.known
    for i, kind in enumerate(chosen):
        if i or aborted >= step:
            assert found(outputs[str(i)]) == expected()[kind]


def test_drafts_bring_tokens_sooner(monkeypatch):
    reference = greedy_reference(PROMPT, 30, stop=False)
    engine = speculate(make_engine(), Oracle(lambda _: reference, 4), monkeypatch)
    request = engine.add_request("a", PROMPT, SamplingParams(temperature=0, **LONG))
    while engine.has_unfinished_requests():
        engine.step()
    stats = engine.stats()
    assert request.sequences[0].output_token_ids == reference
    assert stats.num_steps == 30 - stats.num_accepted_tokens and stats.num_accepted_tokens >= 15
    assert stats.num_draft_tokens >= stats.num_accepted_tokens == sum(stats.accepted_by_place)
    assert list(stats.accepted_by_place) == sorted(stats.accepted_by_place, reverse=True)
    metrics = request.output().metrics
    assert (metrics.num_draft_tokens, metrics.num_accepted_tokens) == (stats.num_draft_tokens, stats.num_accepted_tokens)
    assert stats.num_step_tokens == len(PROMPT) + stats.num_steps - 1 + stats.num_draft_tokens


def test_a_proposer_of_which_nothing_is_used_is_asked_less_often(monkeypatch):
    """And at once again where the next request comes; while its drafts are used, before every step."""
    reference = greedy_reference(PROMPT, 40, stop=False)
    oracle, asked = Oracle(lambda _: reference, 4), list[int]()
    engine = speculate(make_engine(num_scheduler_steps=1), oracle, monkeypatch)
    propose = oracle.propose
    monkeypatch.setattr(oracle, "propose", lambda contexts: asked.append(engine.stats().num_steps) or propose(contexts))
    for name, least_gain in (("unused", 100.0), ("used", 0.0)):
        monkeypatch.setattr(speculation, "MIN_GAIN", least_gain)
        engine.add_request(name, PROMPT, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
        assert run_all(engine)[name].outputs[0].token_ids == reference
    used = [n for n in asked if n > 40]
    assert asked[: -len(used)] == [1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 21, 24, 28, 32, 36]
    assert used == list(range(41, 41 + len(used))) and len(used) > 10


def test_trees_accept_more_than_chains(monkeypatch):
    """Each chain is right as often; the blocks of the one that came are the sequence's from then on, and the prefix cache's."""
    reference, steps = greedy_reference(PROMPT, 40, stop=False), []
    for num_others in (0, 1):
        engine = speculate(make_engine(), Oracle(lambda _: reference, 4, num_others=num_others), monkeypatch)
        engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
        assert run_all(engine)["a"].outputs[0].token_ids == reference
        stats = engine.stats()
        steps.append(stats.num_steps)
        assert stats.num_steps == 40 - stats.num_accepted_tokens
        engine.add_request("b", [*PROMPT, *reference[:30]], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
        output = run_all(engine)["b"]
        assert output.outputs[0].token_ids == reference[30:36] and output.num_cached_tokens == 34 // BLOCK * BLOCK
        engine.check_idle()
    assert steps[1] < 0.9 * steps[0]


@pytest.mark.parametrize(("windows", "options"), [((0, 8), {}), ((6, 0, 3), {"enable_prefix_caching": False})])
def test_windows(monkeypatch, windows, options):
    engine = speculate(make_engine(64, windows=windows, **options), Oracle(answers(range(5)), 5, num_others=1), monkeypatch)
    assert generate(engine, requests()[:5]) == expected()[:5]
    assert engine.stats().num_accepted_tokens > 20


def test_endless_sequences(monkeypatch):
    from cupola.runtime.engine.attention_sinks import SinkWindow

    sinks = SinkWindow.of(2, 16, BLOCK)
    reference = greedy_reference(PROMPT, 100, stop=False, sinks=sinks)
    engine = make_engine(attention_sinks=2, attention_window=16)
    speculate(engine, Oracle(lambda _: reference, 6), monkeypatch)
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    assert run_all(engine)["a"].outputs[0].token_ids == reference
    assert engine.stats().num_accepted_tokens > 30


def test_models_that_draw(monkeypatch):
    """On devices that draw tokens no logits are read, of drafted tokens either."""
    chosen = [i for i, kind in enumerate(KINDS) if set(kind) <= {"temperature", "seed", "top_k", "top_p", "min_p"}]
    plain = [(prompt, params) for prompt, params in (requests()[i] for i in chosen)] + [(PROMPT, SamplingParams(seed=5, top_p=0.7, **LONG))]
    wanted = generate(make_engine(), plain)
    engine = speculate(drawing_engine(), Oracle(lambda name: wanted[int(name[0])][0][0], 5, num_others=1), monkeypatch)
    assert generate(engine, plain) == wanted
    assert engine.executor.num_read == 0 and engine.stats().num_accepted_tokens > 20


def test_a_draft_takes_blocks_from_nobody(monkeypatch):
    """Two sequences that just fit are not preempted for drafts."""
    reference = [greedy_reference([i, *PROMPT], 18, stop=False) for i in range(2)]
    engine = speculate(make_engine(12, enable_prefix_caching=False), Oracle(lambda name: reference[int(name[0])], 15), monkeypatch)
    params = SamplingParams(temperature=0, max_tokens=18, ignore_eos=True)
    assert [one[0][0] for one in generate(engine, [([i, *PROMPT], params) for i in range(2)])] == reference
    assert engine.stats().num_preemptions == 0 and engine.stats().num_accepted_tokens > 10


def test_published_blocks_hold_what_was_said(monkeypatch):
    """The prefix cache knows no block of drafted tokens that did not come."""
    engine = speculate(make_engine(), Oracle(lambda _: [], 0), monkeypatch)
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, **LONG))
    reference = run_all(engine)["a"].outputs[0].token_ids
    for end in (7, 12, 19):
        prompt = [*PROMPT, *reference[:end]]
        engine.add_request("b", prompt, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
        output = run_all(engine)["b"]
        assert output.num_cached_tokens == (len(prompt) - 1) // BLOCK * BLOCK
        assert output.outputs[0].token_ids == greedy_reference(prompt, 6, stop=False)


def test_beams_draft_nothing(monkeypatch):
    engine = speculate(make_engine(), Oracle(lambda _: [1, 2, 3], 3), monkeypatch)
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=1))
    run_all(engine)
    assert engine.stats().num_drafts == 0


@pytest.mark.parametrize("bad", [-1, VOCAB, "x", True, None])
def test_what_is_no_token_is_an_error(monkeypatch, bad):
    engine = speculate(make_engine(), FunctionProposer(lambda tokens, most: [bad]), monkeypatch)
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, **LONG))
    with pytest.raises(EngineError, match="draft has the token id"):
        run_all(engine)


def test_a_state_goes_back_where_a_draft_is_wrong(monkeypatch):
    """Tokens that came of the step are computed again with the next drafts; nothing else is computed twice."""
    reference, steps = greedy_reference(PROMPT, 30, stop=False), []
    engine = speculate(make_engine(recurrent=True, enable_prefix_caching=False), Oracle(lambda _: reference, 4), monkeypatch)
    update = engine.scheduler.update
    monkeypatch.setattr(engine.scheduler, "update", lambda step, samples: steps.append(step) or update(step, samples))
    request = engine.add_request("a", PROMPT, SamplingParams(temperature=0, **LONG))
    run_all(engine)
    stats = engine.stats()
    assert request.sequences[0].output_token_ids == reference
    assert stats.num_steps == 30 - stats.num_accepted_tokens and stats.num_accepted_tokens >= 15
    chunks = [step.chunks[0] for step in steps[1:]]
    assert all(later.start in (earlier.start, earlier.end + len(earlier.draft)) for earlier, later in pairwise(chunks))
    again = [later for earlier, later in pairwise(chunks) if later.start == earlier.start]
    assert len(again) >= 5 and any(chunk.draft for chunk in again)
    assert all(chunk.end - chunk.start == 1 for chunk in chunks if chunk not in again)


def test_without_a_free_slot_a_state_has_no_drafts(monkeypatch):
    reference = greedy_reference(PROMPT, 30, stop=False)
    engine = speculate(make_engine((64, 1), recurrent=True, enable_prefix_caching=False), Oracle(lambda _: reference, 4), monkeypatch)
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, **LONG))
    assert run_all(engine)["a"].outputs[0].token_ids == reference
    assert engine.stats().num_drafts == 0


class MarkovExecutor(FakeExecutor):
    """A model whose logits depend on the last token alone, of which six may come."""

    def _row(self, batch, row):
        super()._row(batch, row)
        logits = np.full(VOCAB, -np.inf, np.float32)
        logits[:6] = np.random.default_rng(int(batch.tokens[row])).normal(0, 1.5, 6)
        return logits


def test_sampled_tokens_have_the_models_distribution(monkeypatch):
    """By chi-squared, over what follows each token, with drafts of n-grams."""
    executor = MarkovExecutor(256)
    engine = speculate(Engine(executor, MODEL, executor.kv, EngineConfig(seed=11)), NGramProposer(), monkeypatch)
    params = SamplingParams(n=4, max_tokens=40, ignore_eos=True)
    counts = np.zeros((6, 6))
    for i, output in enumerate(generate(engine, [([i % 6, 1], params) for i in range(24)])):
        for token_ids, *_ in output:
            np.add.at(counts, (token_ids[:-1], token_ids[1:]), 1)
    stats = engine.stats()
    assert counts.sum() == 24 * 4 * 39 and stats.num_accepted_tokens > 300 and stats.num_draft_tokens > 2 * stats.num_accepted_tokens
    for token, row in enumerate(counts):
        weights = np.exp(np.random.default_rng(token).normal(0, 1.5, 6))
        wanted = weights / weights.sum() * row.sum()
        assert ((row - wanted) ** 2 / wanted).sum() < 25.7, token  # with 5 degrees of freedom, one time in 10,000
