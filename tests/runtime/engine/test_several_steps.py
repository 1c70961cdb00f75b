"""Steps of the model that it takes by itself: the same tokens, in fewer steps of the engine."""

from __future__ import annotations

import numpy as np
import pytest

import cupola.runtime.engine.engine as module
from cupola.runtime.device.host import HostOutput
from cupola.runtime.engine.engine import Engine
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import EngineError
from tests.runtime.fakes import STOP, VOCAB, FakeExecutor, fake_logits, greedy_reference, make_engine, run_all

PROMPT = [3, 1, 4]
LONG = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)


@pytest.fixture(autouse=True)
def patience(monkeypatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 60.0)  # whatever else this machine does


def counts(engine: Engine) -> list[int]:
    """How many tokens each step brings to the first request, until nothing is left."""
    request, found = next(iter(engine.scheduler.requests.values())), [0]
    while engine.has_unfinished_requests():
        engine.step()
        engine.scheduler.check_integrity()
        found.append(request.sequences[0].num_output_tokens)
    engine.check_idle()
    return np.diff(found).tolist()


@pytest.mark.parametrize(("most", "expected"), [(8, [1, 5, 5, 5, 5, 5, 4]), (3, [1, *[3] * 9, 2]), (1, [1] * 30)])
def test_tokens_come_together(most, expected):
    engine = make_engine(num_scheduler_steps=most)  # of the executor: 5
    request = engine.add_request("a", PROMPT, LONG)
    assert counts(engine) == expected
    assert request.sequences[0].output_token_ids == greedy_reference(PROMPT, 30, stop=False)
    assert engine.executor.num_steps == 30


def test_a_stop_token_among_them_is_the_last():
    prompt, tokens = next(
        (p, tokens) for p in ([i, 1] for i in range(VOCAB)) if len(set(tokens := greedy_reference(p, 9))) == 9 and STOP not in tokens
    )
    engine = make_engine(num_scheduler_steps=8)
    engine.add_request("a", prompt, SamplingParams(temperature=0, max_tokens=9, stop_token_ids=[tokens[3]]))
    engine.add_request("b", prompt, SamplingParams(temperature=0, max_tokens=9))
    assert counts(engine) == [1, 3, 0]
    engine.add_request("c", [*prompt, *tokens[:4]], LONG)  # what was cached of what came after is not the other request's
    assert run_all(engine)["c"].outputs[0].token_ids == greedy_reference([*prompt, *tokens[:4]], 30, stop=False)


@pytest.mark.parametrize(
    "params",
    [{"temperature": 1}, {"logprobs": 0}, {"repetition_penalty": 1.1}, {"logit_bias": {1: 1}}, {"min_tokens": 30, "ignore_eos": False}],
    ids=str,
)
def test_who_wants_more_than_the_likeliest_gets_one_at_a_time(params):
    engine = make_engine()
    engine.add_request("a", PROMPT, SamplingParams(**{"temperature": 0, "max_tokens": 30, "ignore_eos": True} | params))
    assert counts(engine) == [1] * 30


def test_one_such_sequence_is_enough():
    engine = make_engine()
    engine.add_request("a", PROMPT, LONG)
    engine.add_request("b", PROMPT, SamplingParams(seed=1, max_tokens=7, ignore_eos=True))
    assert counts(engine) == [*[1] * 7, 5, 5, 5, 5, 3]


def test_a_model_that_is_slow_takes_few_steps(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    engine = make_engine()
    step = engine.executor._step
    monkeypatch.setattr(engine.executor, "_step", lambda batch: module.time.sleep(0.02) or step(batch))
    engine.add_request("a", PROMPT, LONG)
    assert max(counts(engine)) <= 2


def test_nobody_is_kept_waiting():
    engine = make_engine(max_num_seqs=1)
    for name in "ab":
        engine.add_request(name, PROMPT, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    assert counts(engine) == [*[1] * 6, *[0] * 2]  # and nobody waits for the second one


def test_blocks_are_there_or_it_is_one_step():
    engine = make_engine(4, enable_prefix_caching=False)
    for name in "ab":
        engine.add_request(name, PROMPT, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    assert counts(engine) == [1, 4]
    assert engine.scheduler.num_preemptions == 0
    for name in "ab":  # 3 + 7 tokens: three blocks each
        engine.add_request(name, PROMPT, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    found = counts(engine)
    assert sum(found) == 8 and found[:2] == [1, 5] and engine.scheduler.num_preemptions == 1


def test_a_prompt_of_one_token_is_a_prompt():
    engine = make_engine()
    engine.add_request("a", [7], SamplingParams(n=3, temperature=0, max_tokens=6, ignore_eos=True))
    engine.step()
    engine.executor.num_steps = 0
    outputs = run_all(engine)["a"].outputs
    assert [output.token_ids for output in outputs] == [greedy_reference([7], 6, stop=False)] * 3
    assert engine.executor.num_steps == 5


class Broken(FakeExecutor):
    """Gives no numbers in one step."""

    broken = 7

    def _step(self, batch) -> HostOutput:
        output = super()._step(batch)
        return HostOutput.of(np.full_like(output.logits, np.nan)) if self.num_steps == self.broken else output


def test_what_is_no_number_in_the_middle_is_an_error_and_nothing_of_the_step_is_taken():
    engine = make_engine()
    engine.executor.__class__ = Broken
    request = engine.add_request("a", PROMPT, LONG)
    with pytest.raises(EngineError, match="NaN"):
        counts(engine)
    assert request.sequences[0].output_token_ids == greedy_reference(PROMPT, 6, stop=False)
    assert run_all(engine)["a"].outputs[0].token_ids == greedy_reference(PROMPT, 30, stop=False)


def test_prompt_logits_are_of_the_prompt():
    engine = make_engine()
    request = engine.add_request("a", PROMPT, LONG, wants_prompt_logits=True)
    assert counts(engine) == [1, 5, 5, 5, 5, 5, 4]
    np.testing.assert_array_equal(np.concatenate(request.prompt_logits), [fake_logits(PROMPT[: i + 1]) for i in range(3)])
