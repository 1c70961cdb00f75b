"""Models that draw tokens themselves: the same tokens as the host's sampler, which then reads no logits."""

from __future__ import annotations

import numpy as np
import pytest

import cupola.runtime.engine.engine as module
from cupola.runtime.artifact.inputs import DRAW_COLUMNS, UNIFORMS
from cupola.runtime.device.host import HostOutput
from cupola.runtime.device.interface import Batch, SamplingPlan
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.targets.testing.references import drawn
from tests.runtime.engine.test_several_steps import counts
from tests.runtime.fakes import MODEL, VOCAB, FakeExecutor, FakeOutput, completions, make_engine, run_all

PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5], [8]]
PLAIN = [
    {"temperature": 0.8, "top_p": 0.9, "seed": 1},
    {"temperature": 1.5, "top_k": 7, "seed": 2},
    {"min_p": 0.05, "top_p": 0.8, "top_k": 20, "seed": 3},
    {},
]


class DrawingExecutor(FakeExecutor):
    """Draws in float64, and counts the rows of logits that may be read."""

    draws_tokens = True
    num_read = 0

    def submit(self, batch: Batch, sampling: SamplingPlan) -> FakeOutput:
        self.draws = None if batch.draws is None else batch.draws.copy()
        assert self.draws is None or (self.draws.dtype == np.int32 and self.draws.shape == (len(batch.logit_rows), DRAW_COLUMNS))
        self.num_read += len(sampling.rows)
        return super().submit(batch, sampling)

    def _step(self, batch: Batch) -> HostOutput:
        output = super()._step(batch)
        if self.draws is None:
            return output
        tokens = [drawn(*row) for row in zip(output.logits, self.draws, strict=True)]
        self.draws[:, UNIFORMS:-2] = self.draws[:, UNIFORMS + 2 :].copy()
        return HostOutput(output.logits, output.block_maxima, np.array([tokens], np.int32))


def drawing_engine(num_blocks: int = 64, num_swap_blocks: int = 0, **config: object) -> Engine:
    executor = DrawingExecutor(num_blocks, num_swap_blocks)
    return Engine(executor, MODEL, executor.kv, EngineConfig(seed=0, **config))


def generate(engine: Engine, params: list[dict[str, object]]) -> list[object]:
    for i, each in enumerate(params):
        given = {"max_tokens": 14, "ignore_eos": True} | each
        engine.add_request(str(i), PROMPTS[i % len(PROMPTS)], SamplingParams(**given))
    outputs = run_all(engine)
    return [completions(outputs[str(i)]) for i in range(len(params))]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 60.0)  # whatever else this machine does


@pytest.mark.parametrize("num_blocks", [12, 64])
def test_tokens_are_those_of_the_hosts_sampler_and_no_logits_are_read(num_blocks: int) -> None:
    engine = drawing_engine(num_blocks)
    params = [*PLAIN, {"temperature": 0}]
    assert generate(engine, params) == generate(make_engine(num_blocks, seed=0), params)
    assert engine.executor.num_read == 0
    assert (engine.scheduler.num_preemptions > 0) == (num_blocks == 12)


@pytest.mark.parametrize(
    "other",
    [
        {"logprobs": 2, "seed": 5}, {"repetition_penalty": 1.2, "seed": 5}, {"logit_bias": {3: 2.0}, "seed": 5}, {"n": 3, "seed": 5},
        {"allowed_token_ids": [1, 2, 3], "seed": 5}, {"min_tokens": 5, "ignore_eos": False, "stop_token_ids": [7, 8], "seed": 5},
        {"prompt_logprobs": 1, "seed": 5}, {"typical_p": 0.9, "seed": 5}, {"temperature": 0, "logprobs": 1},
    ],
    ids=str,
)  # fmt: skip
def test_who_needs_the_host_gets_it_beside_others(other: dict[str, object]) -> None:
    params = [*PLAIN[:3], other]
    engine = drawing_engine()
    assert generate(engine, params) == generate(make_engine(seed=0), params)
    assert 0 < engine.executor.num_read <= 14


def test_the_model_goes_on_by_itself() -> None:
    engine = drawing_engine()
    params = SamplingParams(temperature=0.9, top_p=0.9, max_tokens=30, ignore_eos=True, seed=1)
    request = engine.add_request("a", PROMPTS[0], params)
    assert counts(engine) == [1, 5, 5, 5, 5, 5, 4]
    host = make_engine()
    expected = host.add_request("a", PROMPTS[0], params)
    assert counts(host) == [1] * 30
    assert request.sequences[0].output_token_ids == expected.sequences[0].output_token_ids


def test_a_stop_token_among_them_is_the_last() -> None:
    params = {"seed": 4, "max_tokens": 9, "ignore_eos": False}
    tokens = generate(make_engine(), [params])[0][0][0]
    stop = next(token for i, token in enumerate(tokens) if i >= 3 and token not in tokens[:i])
    [[(found, reason)]] = generate(drawing_engine(), [params | {"stop_token_ids": [stop]}])
    assert found == tokens[: tokens.index(stop) + 1] and reason == "stop"


def test_a_step_that_fails_takes_no_number() -> None:
    params = SamplingParams(seed=6, max_tokens=20, ignore_eos=True)
    engine = drawing_engine()
    request = engine.add_request("a", PROMPTS[0], params)
    for _ in range(20):
        if request.finished:
            break
        engine.executor.num_failures = 1
        with pytest.raises(module.EngineError, match="on fire"):
            engine.step()
        engine.step()
    host = make_engine()
    expected = host.add_request("a", PROMPTS[0], params)
    run_all(host)
    assert request.finished and request.sequences[0].output_token_ids == expected.sequences[0].output_token_ids


def test_what_is_no_number_is_an_error() -> None:
    engine = drawing_engine()
    engine.executor._row = lambda *_: np.full(VOCAB, np.nan, np.float32)
    engine.add_request("a", PROMPTS[0], SamplingParams(seed=1))
    with pytest.raises(module.EngineError, match="NaN"):
        engine.step()
