"""Logits are the same bits whatever else a step holds: a batch, chunks of a prompt, cached blocks, preempted sequences; and after how
many steps of the model at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cupola
import cupola.runtime.engine.engine as engine_module
from cupola.runtime.engine.step import Step
from tests.e2e.shortened import shortened

NUM_OUTPUTS = 5
PARAMS = cupola.SamplingParams(temperature=0, max_tokens=NUM_OUTPUTS, ignore_eos=True, detokenize=False)
Bits = dict[tuple[tuple[int, ...], int], str]  # by a sequence's prompt and how many tokens the logits follow


@cache
def prompts() -> list[list[int]]:
    """32 prompts of 3 to 80 tokens; some begin alike, over a few whole blocks of the K/V cache."""
    random = np.random.default_rng(7)
    shared = random.integers(0, 49152, 48).tolist()
    tails = [random.integers(0, 49152, size).tolist() for size in random.integers(3, 33, 32)]
    return [shared + tail if i % 4 == 0 else tail for i, tail in enumerate(tails)]


class Recorder:
    """Keeps a digest of every row of logits that a token is chosen from."""

    def __init__(self) -> None:
        self.bits: Bits = {}
        self.sample = engine_module.sample

    def __call__(self, output, step: Step, *rest, **named):
        for chunk in step.chunks:
            if chunk.samples:
                row = output.row(chunk.first_row + chunk.end - chunk.logits_start - 1)
                key = chunk.sequence.request.spec.prompt_token_ids, chunk.end + step.num_steps - 1
                digest = hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()
                assert self.bits.setdefault(key, digest) == digest, "a row that was computed again"
        return self.sample(output, step, *rest, **named)


@pytest.fixture(scope="module", params=["f32", "w4a8"])
def artifact(request: pytest.FixtureRequest, smollm2_file: Path, tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    """Three of SmolLM2's layers have all its kernels, and a bit that differs in one stays different."""
    folder = tmp_path_factory.mktemp("bits")
    file = shortened(smollm2_file, 3, folder / "short.gguf")
    target = "cpu" if request.param == "f32" else "cpu:batch-invariant"
    return cupola.compile(file, out=folder / "artifact", quant=request.param, target=target, context=512)


@pytest.fixture(scope="module")
def alone(artifact: cupola.Artifact) -> Iterator[Bits]:
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        patch.setattr(engine_module, "sample", recorder)
        llm = cupola.LLM(artifact, max_num_seqs=1, enable_prefix_caching=False, num_scheduler_steps=1)
        for prompt in prompts():
            llm.generate([prompt], PARAMS)
        yield recorder.bits


def run(artifact: cupola.Artifact, chosen: list[list[int]], *, times: int = 1, num_scheduler_steps: int = 1, **options) -> tuple[Bits, int]:
    """The bits of all logits that the engine sees, and how many sequences were preempted."""
    preemptions = 0
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder()
        patch.setattr(engine_module, "sample", recorder)
        llm = cupola.LLM(artifact, num_scheduler_steps=num_scheduler_steps, **options)
        for _ in range(times):
            outputs = llm.generate(chosen, PARAMS)
            preemptions += sum(output.metrics.num_preemptions for output in outputs if output.metrics)
    return recorder.bits, preemptions


def expected(alone: Bits, chosen: list[list[int]]) -> Bits:
    kept = {tuple(prompt) for prompt in chosen}
    return {key: digest for key, digest in alone.items() if key[0] in kept}


def differing(found: Bits, wanted: Bits) -> list[tuple[int, int]]:
    """The lengths of prompts, and after how many tokens. (Of all that is equal, pytest would make gigabytes of explanation.)"""
    return [
        (len(prompt), end) for prompt, end in sorted(found.keys() | wanted.keys()) if found.get((prompt, end)) != wanted.get((prompt, end))
    ]


@pytest.mark.by_turns
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(2, 32), first=st.integers(0, 31), chunk=st.integers(1, 512), cache=st.booleans())
def test_in_batches_and_chunks(artifact: cupola.Artifact, alone: Bits, count: int, first: int, chunk: int, cache: bool) -> None:
    count = min(count, 2 + chunk // 8)  # a token or two a step take long
    chosen = [prompts()[(first + i) % 32] for i in range(count)]
    found, _ = run(artifact, chosen, max_num_seqs=count, max_num_batched_tokens=max(chunk, count), enable_prefix_caching=cache)
    assert differing(found, expected(alone, chosen)) == []


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_one_prompt_in_chunks(artifact: cupola.Artifact, alone: Bits, chunk: int) -> None:
    chosen = [prompts()[0]]
    found, _ = run(artifact, chosen, max_num_seqs=1, max_num_batched_tokens=chunk)
    assert differing(found, expected(alone, chosen)) == []


def test_after_a_cache_hit(artifact: cupola.Artifact, alone: Bits) -> None:
    chosen = prompts()[:12]
    found, _ = run(artifact, chosen, times=2, enable_prefix_caching=True)
    assert differing(found, expected(alone, chosen)) == []


def test_after_several_steps_at_once(artifact: cupola.Artifact, alone: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE", 60.0)  # as long as it takes
    chosen = prompts()[:12]
    found, _ = run(artifact, chosen, num_scheduler_steps=8, enable_prefix_caching=False)
    wanted = expected(alone, chosen)
    assert len(found) < len(wanted)
    assert differing(found, {key: wanted[key] for key in found}) == []
    assert found.keys() >= {(tuple(prompt), len(prompt) + NUM_OUTPUTS - 1) for prompt in chosen}


@pytest.mark.parametrize("swap_memory", ["0", "1GB"])
def test_after_preemption(artifact: cupola.Artifact, alone: Bits, swap_memory: str) -> None:
    """The pool holds little more than the longest sequence."""
    chosen, kv = prompts()[:10], artifact.manifest.kv
    longest = max(map(len, chosen)) + NUM_OUTPUTS
    memory = (-(-longest // kv.block_size) + 1) * kv.bytes_per_block
    found, preemptions = run(artifact, chosen, kv_memory=memory, swap_memory=swap_memory, enable_prefix_caching=False)
    assert preemptions > 0
    assert differing(found, expected(alone, chosen)) == []
