"""Drafts of the model's own first layers, in the blocks of its sequences: no token changes, and what they leave there is never read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupola.runtime.engine.engine import NO_EARLY_EXIT, Engine, EngineConfig
from cupola.runtime.engine.proposers.early_exit import EarlyExitProposer
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.speculative import check_speculative, num_layers
from cupola.runtime.errors import OptionError
from tests.runtime.engine.speculating import run_through, speculate
from tests.runtime.engine.test_speculation import KINDS, expected, found, requests
from tests.runtime.fakes import BLOCK, MODEL, FakeExecutor, greedy_reference, run_all

ELSEWHERE = 1 << 20  # added to positions: K and V that lack the last layers


class Layered(FakeExecutor):
    """Its first layers say what all of them say, most of the time. They leave marks, which a whole step must not read."""

    num_layers, early = 4, False

    def submit(self, batch, sampling):
        self.early, self.slots = sampling.num_layers is not None, []
        assert sampling.num_layers is None or 0 < sampling.num_layers < self.num_layers
        try:
            return super().submit(batch, sampling)
        finally:
            for written in self.slots:
                for pages, slots in zip(self.pages, written, strict=True):
                    pages[slots // BLOCK, slots % BLOCK, 1] += ELSEWHERE

    def _step(self, batch):
        self.slots += [batch.slots] if self.early else []
        return super()._step(batch)

    def _row(self, batch, row):
        return np.roll(super()._row(batch, row), self.early and int(batch.tokens[row]) % 3 == 0)


def layered_engine(num_blocks=64, num_swap_blocks=0, windows=(0,), recurrent=False, num_drafting=2, **config):
    executor = Layered(num_blocks, num_swap_blocks, windows, recurrent)
    return Engine(executor, MODEL, executor.kv, EngineConfig(**config), proposer=EarlyExitProposer(num_drafting))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=8),
    num_blocks=st.integers(14, 60),
    budget=st.sampled_from([7, 16, 64]),
    max_num_seqs=st.integers(1, 6),
    caching=st.booleans(),
    num_swap_blocks=st.sampled_from([0, 6, 60]),
    failures=st.sets(st.integers(0, 30), max_size=3),
)
def test_random_schedules(monkeypatch, chosen, num_blocks, budget, max_num_seqs, caching, num_swap_blocks, failures):
    """Batches, forks, preemption, swapping, the prefix cache, failed steps: each request gets what it gets alone without drafts."""
    options = {"max_num_batched_tokens": budget, "max_num_seqs": max_num_seqs, "enable_prefix_caching": caching}
    engine = layered_engine(num_blocks, num_swap_blocks, **options)
    speculate(engine, engine.speculation.proposer, monkeypatch)
    for i, kind in enumerate(chosen):
        engine.add_request(str(i), *requests()[kind])
    outputs, _ = run_through(engine, failures)
    assert [found(outputs[str(i)]) for i in range(len(chosen))] == [expected()[kind] for kind in chosen]


@pytest.mark.parametrize("windows", [(0,), (0, 8), (5,)])
def test_tokens_come_sooner(monkeypatch, windows):
    engine = layered_engine(windows=windows)
    speculate(engine, engine.speculation.proposer, monkeypatch)
    prompt = [3, 1, 4, 1, 5]
    engine.add_request("a", prompt, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    expected = greedy_reference(prompt, 30, stop=False, window=0 if 0 in windows else max(windows))
    assert run_all(engine)["a"].outputs[0].token_ids == expected
    stats = engine.stats()
    assert stats.num_accepted_tokens > 10 and stats.num_steps == 30 - stats.num_accepted_tokens


def test_what_can_not_draft_is_refused():
    for num_drafting in (4, 9):
        with pytest.raises(OptionError, match=f"asks for {num_drafting} layers, and the model has 4") as caught:
            layered_engine(num_drafting=num_drafting)
        assert caught.value.fix == "give 1 to 3"
    with pytest.raises(OptionError, match="attention_sinks may move"):
        layered_engine(attention_sinks=4, attention_window=8)
    executor = FakeExecutor()
    with pytest.raises(OptionError, match="can't run alone"):
        Engine(executor, MODEL, executor.kv, EngineConfig(), proposer=EarlyExitProposer(1))
    assert layered_engine(recurrent=True).notes == (NO_EARLY_EXIT,)


@pytest.mark.parametrize(
    "bad", ["early-exit:", "early-exit:0", "early-exit:-1", "early-exit:x", "early-exit:1.5", "early-exit:²", "early-exit:" + "9" * 999]
)
def test_what_is_no_number_of_layers_is_refused(bad):
    with pytest.raises(OptionError, match="is 'early-exit:") as caught:
        check_speculative(bad)
    assert caught.value.fix == "give a number of layers, such as early-exit:16"
    check_speculative("early-exit:007")
    assert num_layers("early-exit:16") == 16
