"""The pace of generated tokens, by a clock that only steps and sleeps move."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cupola.runtime.device.interface import Batch, SamplingPlan
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.pace import Pace
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import OptionError
from tests.runtime.fakes import MODEL, FakeExecutor, FakeOutput, completions, generate_alone, run_all

STEP = 0.01  # seconds; the first token comes at the end of the first one
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


class Clock:
    """Seconds since it began; sleeping takes longer than asked for, by up to `oversleep`."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.now, self.slept, self._oversleep, self._rng = 1000.0, 0.0, oversleep, np.random.default_rng(0)

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += seconds
        self.now += seconds + self._rng.uniform(0, self._oversleep)


class TimedExecutor(FakeExecutor):
    """A step of the model takes so many seconds; notes when each began, and how many tokens it had."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds, self.steps = clock, seconds, list[tuple[float, int]]()

    def submit(self, batch: Batch, sampling: SamplingPlan) -> FakeOutput:
        self.steps.append((self.clock.now, len(batch.tokens)))
        self.clock.now += self.seconds * sampling.num_steps
        return super().submit(batch, sampling)


def paced(rate: float | None, clock: Clock, seconds: float = STEP, **config: int) -> tuple[Engine, TimedExecutor]:
    executor = TimedExecutor(clock, seconds)
    pace = Pace(rate, clock.read, clock.sleep)
    return Engine(executor, MODEL, executor.kv, EngineConfig(max_tokens_per_second=rate, **config), pace=pace), executor


@pytest.mark.parametrize("oversleep", [0.0, 0.015])
@pytest.mark.parametrize("rate", [0.5, 10, 60.0])
def test_the_pace_is_exact_in_the_long_run(rate: float, oversleep: float) -> None:
    clock = Clock(oversleep)
    engine, executor = paced(rate, clock)
    engine.add_request("a", [1, 2, 3], GREEDY)
    tokens = completions(run_all(engine)["a"])
    starts = [start for start, _ in executor.steps]
    assert tokens == generate_alone([1, 2, 3], GREEDY)
    assert starts[0] == 1000.0, "the first token does not wait"
    assert starts[-1] - starts[0] == pytest.approx((len(tokens[0][0]) - 1) / rate + STEP, abs=oversleep + 1e-6)
    for i, start in enumerate(starts):
        assert start - 1000 >= i / rate - 1e-6, "no token comes early"


def test_sequences_share_the_pace() -> None:
    clock = Clock()
    engine, executor = paced(20, clock)
    for name in "abcd":
        engine.add_request(name, [ord(name) - 90, 2, 3], GREEDY)
    num_tokens = sum(len(ids) for output in run_all(engine).values() for ids, _ in completions(output))
    assert num_tokens == 4 * 40
    assert executor.steps[-1][0] - executor.steps[0][0] == pytest.approx((num_tokens - 4) / 20 + STEP)


def test_a_prompt_does_not_wait_and_what_it_brings_along_is_waited_for() -> None:
    clock = Clock()
    engine, executor = paced(2, clock)
    engine.add_request("a", [1, 2, 3], GREEDY)
    for _ in range(5):
        engine.step()
    before = clock.now
    assert engine.delay() == pytest.approx(0.5 - 0.01)
    engine.add_request("b", [4, 5, 6], GREEDY)
    assert engine.delay() == 0
    engine.step()
    assert executor.steps[-1] == (before, 4), "the prompt, beside a token of the other"
    assert engine.delay() == pytest.approx(0.5 + 2 * 0.5 - 0.02)
    run_all(engine)
    assert executor.steps[-1][0] - executor.steps[0][0] == pytest.approx((2 * 40 - 2) / 2, abs=1)


def test_a_model_that_is_slower_than_the_pace_hardly_sleeps() -> None:
    clock = Clock()
    engine, _ = paced(50, clock, seconds=0.03)
    engine.add_request("a", [1, 2, 3], GREEDY)
    run_all(engine)
    assert clock.slept == pytest.approx(1 / 50), "after the first token alone"


def test_idle_time_and_slow_steps_are_not_caught_up_with() -> None:
    clock = Clock()
    engine, executor = paced(10, clock)
    engine.add_request("a", [1, 2, 3], GREEDY)
    for _ in range(3):
        engine.step()
    clock.now += 5  # the machine was suspended
    start = clock.now
    run_all(engine)
    at = [begun - start for begun, _ in executor.steps[3:]]
    assert all(second >= (i - 1) / 10 - 1e-6 for i, second in enumerate(at)), "at most a tenth of a second is caught up with"
    clock.now += 100
    engine.add_request("b", [1, 2, 3], GREEDY)
    begun = len(executor.steps)
    run_all(engine)
    assert executor.steps[-1][0] - executor.steps[begun][0] == pytest.approx(39 / 10 + STEP)


def test_tokens_come_one_by_one_unless_the_pace_is_fast() -> None:
    """A model that finds tokens by itself takes several steps at once: no more than are due within 16 ms."""
    clock = Clock()
    engine, executor = paced(20, clock, seconds=0)
    engine.add_request("a", [1, 2, 3], GREEDY)
    run_all(engine)
    assert len(executor.steps) == 40
    fast, executor = paced(1000, Clock(), seconds=0)
    fast.add_request("a", [1, 2, 3], GREEDY)
    run_all(fast)
    assert len(executor.steps) < 20


def test_without_a_pace_nobody_sleeps() -> None:
    clock = Clock()
    engine, _ = paced(None, clock)
    engine.add_request("a", [1, 2, 3], GREEDY)
    assert engine.delay() == 0
    run_all(engine)
    assert clock.slept == 0 and engine.delay() == 0


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan, True, "10"])
def test_a_pace_is_a_number_above_0(wrong: object) -> None:
    with pytest.raises(OptionError, match="max_tokens_per_second"):
        EngineConfig(max_tokens_per_second=wrong)  # type: ignore[arg-type]
