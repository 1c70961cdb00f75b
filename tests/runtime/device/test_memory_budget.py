"""The parts of a memory budget: sequences, tokens of a step, context and K/V."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.device import memory_budget
from cupola.runtime.device.executor import open_library
from cupola.runtime.device.memory_budget import SPARE_BYTES, Division, divide_memory
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import OptionError, RequestError
from cupola.runtime.llm import LLM
from cupola.runtime.system import memory
from cupola.runtime.system.memory import memory_in_use
from tests.runtime.tiny_artifact import VOCAB, make_artifact
from tests.systems import needs

Divide = Callable[..., Division]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_artifact(tmp_path_factory.mktemp("budget") / "model", context=4096)


@pytest.fixture
def divide(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> Divide:
    """Of a process that has nothing yet, with one thread; the budget is what lies above all that is spared."""
    monkeypatch.setattr(memory_budget, "memory_in_use", lambda: (0, 0))
    monkeypatch.setenv("CUPOLA_NUM_THREADS", "1")
    plan = open_library(artifact).library.plan
    weights = VOCAB * VOCAB * 4

    def divided(num_bytes: int, **options: object) -> Division:
        given = {"kv_memory": None, "swap_bytes": 0, "max_num_seqs": 8, "max_num_tokens": 512, "longest": 4096, **options}
        return divide_memory(artifact.manifest, plan, num_bytes + SPARE_BYTES + memory_budget.THREAD_BYTES + weights, **given)

    return divided


def test_more_memory_gives_more(divide: Divide) -> None:
    found = [divide(1 << bits) for bits in range(14, 25)]
    for less, more in pairwise(found):
        assert (less.context <= more.context and less.max_num_tokens <= more.max_num_tokens) or more.max_num_seqs > less.max_num_seqs
        assert less.kv_memory <= more.kv_memory
    assert (found[-1].context, found[-1].max_num_seqs, found[-1].max_num_tokens) == (4096, 8, 512)
    assert found[-1].note.endswith("leaves 4,096 tokens of context, 8 sequences and 512 tokens a step, 0.3 MB for K/V")
    assert found[0].context < 4096 and found[0].max_num_seqs == 1 and " of 4,096 tokens of context, 1 sequence and" in found[0].note


def test_what_is_there_and_what_is_asked_for_count(divide: Divide, monkeypatch: pytest.MonkeyPatch) -> None:
    assert divide(1 << 24, kv_memory=10_000).kv_memory == 10_000
    assert divide(1 << 24, max_num_seqs=2, max_num_tokens=20).max_num_tokens == 20
    whole = divide(1 << 17)
    swapping = divide((1 << 17) + 5_000_000, swap_bytes=5_000_000)
    assert (swapping.kv_memory, swapping.context) == (whole.kv_memory, whole.context)
    monkeypatch.setattr(memory_budget, "memory_in_use", lambda: (7_000_000, 9_000_000))
    later = divide((1 << 17) + 7_000_000)
    assert (later.kv_memory, later.context) == (whole.kv_memory, whole.context)


def test_too_little_is_refused_with_what_is_enough(divide: Divide, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OptionError, match=r"memory_budget: is 18 MB; the weights take 0 of them, and 256 tokens of context fit into 19 MB \(give"
    ):
        divide(0)
    with pytest.raises(OptionError, match=r"kv_memory: is 0\.0 MB, which hold no 256 tokens"):
        divide(1 << 24, kv_memory=100)
    monkeypatch.setattr(memory_budget, "memory_in_use", lambda: None)
    with pytest.raises(OptionError, match="this system does not say"):
        divide(1 << 24)


@needs("to know a process's memory")
def test_an_llm_says_what_it_has(artifact: Artifact) -> None:
    used = memory_in_use()
    assert used is not None
    llm = LLM(artifact, memory_budget=used[1] + 200_000_000)
    assert llm.engine.config.max_num_seqs == 8 and len(llm.notes) == 1 and "8 sequences" in llm.notes[0]
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, detokenize=False))
    assert (said := llm.memory_use()) is not None and said.endswith(f" MB of memory at most, of {(used[1] + 200_000_000) / 1e6:.0f} MB")
    for refused in (lambda: llm.logits([1]), lambda: llm.generate([[1]], SamplingParams(prompt_logprobs=1, detokenize=False))):
        with pytest.raises(RequestError, match="prompt_logprobs: takes memory"):
            refused()
    assert LLM(artifact).memory_use() is None
    with pytest.raises(OptionError, match="memory_budget: is 'much'"):
        LLM(artifact, memory_budget="much")
    with pytest.raises(OptionError, match="memory_budget: does not count what drafted tokens take"):
        LLM(artifact, memory_budget="1GB", speculative="ngram")


@needs("to know a process's memory")
def test_the_system_says_what_a_process_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = memory_in_use()
    assert before is not None and 0 < before[0] <= before[1]
    array = np.ones(40_000_000, np.uint8)
    now = memory_in_use()
    assert now is not None and array.nbytes * 0.9 < now[0] - before[0] and now[1] >= now[0]
    pages = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert abs(memory_in_use()[0] - pages) < 4_000_000  # type: ignore[index]
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    peak = memory_in_use()
    assert peak is not None and abs(peak[1] - now[1]) < 0.05 * now[1] and peak[0] == peak[1]
