"""A model's first steps come before its first request, and leave nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.warm_up import warm_up
from tests.runtime.fakes import MODEL, FakeExecutor, greedy_reference, run_all


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("context_length", [1, 2, 3, MODEL.context_length])
def test_an_engine_finds_the_model_as_it_was(context_length: int, recurrent: bool) -> None:
    executor, model = FakeExecutor(4, 0, (0,), recurrent), replace(MODEL, context_length=context_length)
    warm_up(executor, model, executor.kv, EngineConfig(speculative="ngram", max_tokens_per_second=0.01), None)
    assert (executor.num_steps > 0) == (context_length > 2)
    engine = Engine(executor, MODEL, executor.kv, EngineConfig())
    assert engine.stats().num_steps == 0
    engine.add_request("a", [3, 1, 4], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    [answer] = run_all(engine)["a"].outputs
    assert answer.token_ids == greedy_reference([3, 1, 4], 5, stop=False)
