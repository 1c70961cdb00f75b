"""`Benchmark` times the tokens that its tests name, at their depth and of as many streams."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.device.interface import Batch
from cupola.runtime.errors import OptionError
from cupola.runtime.measure import benchmark as module
from cupola.runtime.measure.benchmark import Benchmark, SpeedTest
from tests.runtime.tiny_artifact import BLOCK, CONTEXT, make_artifact

TESTS = [
    SpeedTest(kind, num_tokens, depth, streams)
    for depth in (0, BLOCK, 7, 48)
    for kind, num_tokens, streams in (("pp", 1, 1), ("pp", 15, 1), ("tg", 1, 1), ("tg", 9, 1), ("tg", 15, 7), ("tg", 5, 8))
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("tiny") / "artifact")


@pytest.fixture(scope="module")
def benchmark(artifact) -> Benchmark:
    return Benchmark(artifact, TESTS)


def timed_batches(benchmark: Benchmark, test: SpeedTest, monkeypatch) -> list[tuple[Batch, int]]:
    """The batches between the two looks at the clock, and how many steps each took."""
    events: list[object] = []
    executor = benchmark._llm.engine.executor
    submit = executor.submit
    monkeypatch.setattr(executor, "submit", lambda batch, sampling: events.append((batch, sampling.num_steps)) or submit(batch, sampling))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: events.append("tick") or float(len(events))))
    benchmark.seconds(test)
    monkeypatch.undo()
    benchmark._llm.engine.check_idle()
    first, last = (i for i, event in enumerate(events) if event == "tick")
    return events[first + 1 : last]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_exactly_the_tests_tokens_are_timed(benchmark, test, monkeypatch):
    for _ in range(2):
        steps = timed_batches(benchmark, test, monkeypatch)
        positions = np.concatenate([batch.positions + i for batch, num_steps in steps for i in range(num_steps)])
        if test.kind == "tg":
            assert {len(batch.tokens) for batch, _ in steps} == {test.num_streams}
            expected = np.repeat(np.arange(test.depth, test.depth + test.num_tokens), test.num_streams)
        else:  # a depth that fills no whole block leaves the rest of its tokens to the test
            expected = np.arange(test.depth // BLOCK * BLOCK, test.depth + test.num_tokens)
        assert positions.tolist() == expected.tolist()


def test_streams_share_no_blocks(benchmark, monkeypatch):
    for step, _ in timed_batches(benchmark, SpeedTest("tg", 5, 48, 8), monkeypatch):
        used = np.concatenate([table[: -(-length // BLOCK)] for table, length in zip(step.block_tables[0], step.context_lens, strict=True)])
        assert len(np.unique(used)) == len(used)


def test_warming_up_and_rates(benchmark, monkeypatch):
    test = SpeedTest("tg", 5, 7, 3)
    benchmark.warm_up(test)
    monkeypatch.setattr(benchmark, "seconds", lambda test: 0.5)
    assert benchmark.tokens_per_second(test) == 30


@pytest.mark.parametrize(
    ("test", "name", "context"),
    [
        (SpeedTest("pp", 512), "pp512", 513),
        (SpeedTest("tg", 128, 512), "tg128 @ d512", 641),
        (SpeedTest("tg", 8, 1, 16), "tg8 × 16 @ d1", 10),
    ],
)
def test_names_are_llama_benchs(test, name, context):
    assert (test.name, test.context) == (name, context)


@pytest.mark.parametrize(
    ("tests", "expected"),
    [([], "tests: there is none"), ([SpeedTest("pp", 1), SpeedTest("tg", 9, CONTEXT - 9)], "tg9 @ d55: needs a context of 65 tokens"),
     ([SpeedTest("tg", 1, 0, 9)], "tg1 × 9: needs 9 streams, and the artifact takes 8")],
)  # fmt: skip
def test_what_the_artifact_cannot_do_is_refused(artifact, tests, expected):
    with pytest.raises(OptionError, match=expected):
        Benchmark(artifact, tests)
    Benchmark(artifact, [SpeedTest("tg", 9, CONTEXT - 10)]).seconds(SpeedTest("tg", 9, CONTEXT - 10))
