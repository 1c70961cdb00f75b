"""The choice of how much of drafts is used: more tokens a second, as it is expected, or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cupola.runtime.engine.engine as engine_module
from cupola.runtime.engine import speculation as module
from cupola.runtime.engine.acceptance import Acceptance
from cupola.runtime.engine.proposers.proposer import Context, Draft
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.speculation import MIN_GAIN, Speculation, choose_lengths
from cupola.targets.cpu.attention.paged import FEW
from tests.runtime.engine.speculating import Oracle
from tests.runtime.fakes import VOCAB, greedy_reference, make_engine, run_all

PROMPT = [3, 1, 4, 1, 5]


def powers(chance: float, length: int) -> list[float]:
    return [chance**i for i in range(1, length + 1)]


def test_good_drafts_are_used_as_far_as_they_pay():
    linear = [1.0 + 0.3 * n for n in range(40)]
    assert choose_lengths([powers(0.9, 15)], linear, 1, linear[1]) == [6]
    assert choose_lengths([powers(0.3, 15)], linear, 1, linear[1]) == [0]
    assert choose_lengths([powers(0.9, 2)], linear, 1, linear[1]) == [2]
    assert choose_lengths([powers(0.9, 15), powers(0.3, 15)], linear, 2, linear[2])[1] == 0


def test_cliffs_are_seen():
    costs = [18.0, 18.2, 17.3, 25.4, 18.6, 24.2, 24.2, 33.0, 33.0]  # of steps of 0 to 8 tokens
    assert choose_lengths([powers(0.7, 2)], costs, 1, costs[1]) == [1]
    assert choose_lengths([powers(0.7, 7)], costs, 1, costs[1]) == [3]


@given(
    chances=st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 4)), min_size=1, max_size=3),
    costs=st.lists(st.floats(1, 3), min_size=20, max_size=20),
)
def test_nothing_else_is_better(chances, costs):
    drafts, num_plain = [powers(*pair) for pair in chances], len(chances)
    lengths = choose_lengths(drafts, costs, num_plain, costs[num_plain])

    def rate(chosen: list[int]) -> float:
        gained = sum(sum(draft[:length]) for draft, length in zip(drafts, chosen, strict=True))
        return (num_plain + gained) / costs[num_plain + sum(chosen)]

    best = max(rate([int(i) for i in chosen]) for chosen in np.ndindex(*[len(draft) + 1 for draft in drafts]))
    plain = MIN_GAIN * num_plain / costs[num_plain]
    assert rate(lengths) == pytest.approx(best) if any(lengths) else best <= plain * (1 + 1e-9)


def test_chances_are_learned_by_evidence_and_by_sequence():
    acceptance = Acceptance()
    assert acceptance.chance("a", 3) == 0.5
    for _ in range(50):
        acceptance.observe("a", 3, 4, was_wrong=False)
        acceptance.observe("b", 3, 0, was_wrong=True)
    assert acceptance.chance("a", 3) > 0.9 and acceptance.chance("b", 3) < 0.2
    assert 0.5 < acceptance.chance("c", 3) < 0.9  # as all of them
    assert acceptance.chance("a", 4) == 0.5


def test_chances_that_proposers_give_are_corrected_by_what_came():
    speculation = Speculation(Small(), VOCAB)
    assert [speculation._chance("a", given) for given in (0.0, 0.55, 1.0)] == [0.0, 0.55, 1.0]
    for i in range(400):
        speculation.calibration.observe("a", 4, int(i % 4 == 0), was_wrong=i % 4 > 0)
    assert 0.2 < speculation._chance("a", 0.6) < 0.3 and 0.2 < speculation._chance("b", 0.6) < 0.4
    assert speculation._chance("a", 0.3) == 0.3


def test_drafts_that_are_never_right_are_left_out_and_cost_no_steps(monkeypatch):
    """Once enough of them were held against what came, the model goes on by itself as without a proposer."""
    monkeypatch.setattr(engine_module, "PATIENCE", 60.0)
    engine = make_engine(num_scheduler_steps=5)
    engine.speculation = Speculation(Oracle(lambda _: [], 0), VOCAB)
    for name in "abcdef":
        engine.add_request(name, PROMPT, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
        run_all(engine)
    before, steps = engine.stats(), 0
    request = engine.add_request("last", PROMPT, SamplingParams(temperature=0, max_tokens=41, ignore_eos=True))
    while not request.finished:
        engine.step()
        steps += 1
    assert request.sequences[0].output_token_ids == greedy_reference(PROMPT, 41, stop=False)
    assert engine.stats().num_draft_tokens == before.num_draft_tokens and steps == 1 + 40 // 5


class Small:
    """A proposer that takes time, and is always right."""

    is_free = False
    doubts = False

    def propose(self, contexts: list[Context]) -> list[Draft]:
        return [Draft(tuple(greedy_reference(list(context.token_ids), context.most, stop=False))) for context in contexts]

    def forget(self, context: Context) -> None:
        pass


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 15), (0.1, 2), (10.0, 0)])
def test_the_time_that_drafts_take_counts(seconds, expected):
    """Of a step of a second, whatever its size, and tokens of which every other one is right."""
    engine = make_engine()
    speculation = Speculation(Small(), VOCAB)
    for length in (1, 15):
        for _ in range(2):
            speculation._drafting.observe(length, seconds * length)
    sequence = engine.add_request("a", PROMPT, SamplingParams()).sequences[0]
    assert speculation._plan_length([sequence], 1, [1.0] * 17, 1.0)[0] == expected
    speculation._num_without = module.FIRST_PROBE
    assert speculation._plan_length([sequence], 1, [1.0] * 17, 1.0)[0] == max(expected, 1)  # it may be worth it by now


def test_a_proposer_that_knows_when_to_end_is_told_what_another_token_must_bring():
    """A step takes a second, a drafted token a tenth of one, and half of them are right: the second is the last that brings more."""
    speculation = Speculation(Small(), VOCAB)
    speculation.proposer.doubts = True
    for _ in range(2):
        speculation._drafting.observe(1, 0.1)
        speculation._drafting.observe(15, 1.5)
    sequence = make_engine().add_request("a", PROMPT, SamplingParams()).sequences[0]
    most, least = speculation._plan_length([sequence], 1, [1.0] * 17, 1.0)
    rate = (1 + 0.5 + 0.25) / 1.2
    assert most == 15 and least == pytest.approx(0.1 * rate / 0.5)
    assert speculation._plan_length([sequence], 1, [2.0, 2.0, *[1.0] * 15], 2.0)[1] > 0  # steps of several tokens may even be faster


def test_drafts_that_do_not_pay_are_tried_the_more_seldom():
    speculation = Speculation(Small(), VOCAB)
    for _ in range(2):
        speculation._drafting.observe(1, 10.0)
    sequence, probes = make_engine().add_request("a", PROMPT, SamplingParams()).sequences[0], []
    for step in range(400):
        speculation._num_without += 1
        if speculation._plan_length([sequence], 1, [1.0] * 17, 1.0)[0]:
            probes.append(step)
            speculation._num_without = 0
    assert np.diff(probes).tolist() == [32, 64, 128, 128]


def test_tokens_of_a_draft_may_have_chances_of_their_own(monkeypatch):
    """The first is known to be right, the second to be wrong, whatever its proposer says: only the first comes into a step."""
    reference = greedy_reference(PROMPT, 40, stop=False)

    class Doubtful(Small):
        def propose(self, contexts: list[Context]) -> list[Draft]:
            done = [len(context.token_ids) - context.num_prompt_tokens for context in contexts]
            return [Draft((reference[n], (reference[n + 1] + 1) % VOCAB), chances=(0.9, 0.6)) for n in done]

    engine = make_engine()
    engine.speculation = Speculation(Doubtful(), VOCAB)
    monkeypatch.setattr(engine.speculation.costs, "table", lambda most: [1.0 + 0.2 * n for n in range(most + 1)])
    for _ in range(60):
        engine.speculation.calibration.observe("another", 7, 1, was_wrong=False)
        engine.speculation.acceptance.observe("another", 0, 1, was_wrong=False)
        engine.speculation.calibration.observe("another", 4, 0, was_wrong=True)
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    assert run_all(engine)["a"].outputs[0].token_ids == reference[:30]
    assert engine.stats().num_draft_tokens == engine.stats().num_accepted_tokens >= 10


def test_a_proposer_that_takes_time(monkeypatch):
    engine = make_engine()
    engine.speculation = Speculation(Small(), VOCAB)
    monkeypatch.setattr(engine.speculation.costs, "table", lambda most: [1.0] * (most + 1))
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    assert run_all(engine)["a"].outputs[0].token_ids == greedy_reference(PROMPT, 30, stop=False)
    assert engine.stats().num_accepted_tokens > 20


@pytest.mark.parametrize("num_running", [1, 4, 16, 17])
def test_drafts_keep_steps_to_few_rows(monkeypatch, num_running):
    """Where rows among more would have other bits; a step that has more rows anyway may have any number."""
    monkeypatch.setattr(module, "MIN_GAIN", 0.0)
    engine = make_engine(400, max_num_seqs=20, max_num_batched_tokens=200)
    reference = greedy_reference(PROMPT, 40, stop=False)
    engine.speculation = Speculation(Oracle(lambda _: reference, 15), VOCAB, keeps_few=True)
    monkeypatch.setattr(engine.speculation.costs, "table", lambda most: [1.0] * (most + 1))
    for i in range(num_running):
        engine.add_request(str(i), PROMPT, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    sizes, submit = [], engine.executor.submit
    monkeypatch.setattr(engine.executor, "submit", lambda batch, plan: sizes.append(len(batch.tokens)) or submit(batch, plan))
    for _ in range(2):
        engine.step()
    assert max(sizes[1:]) in {1: [16], 4: [16], 16: [16], 17: range(18, 200)}[num_running]


def test_few_rows_are_those_of_the_cpus_kernels():
    assert module.FEW_ROWS == FEW


def test_nothing_is_drafted_beside_prompts():
    engine = make_engine(max_num_batched_tokens=4)
    engine.speculation = Speculation(Oracle(lambda _: [1, 2], 2), VOCAB)
    engine.add_request("a", PROMPT, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    engine.step()
    engine.step()
    engine.add_request("b", list(range(30)), SamplingParams(temperature=0, max_tokens=1))
    num_known = len(engine.speculation.proposer.known)
    while "b" in engine.scheduler.requests:
        engine.step()
    assert len(engine.speculation.proposer.known) == num_known
    run_all(engine)
