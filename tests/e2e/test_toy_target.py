"""A target with nothing of its own, only a name and TVM's target, answers as the CPU's does."""

from __future__ import annotations

from pathlib import Path

import pytest

import cupola
from cupola.targets import registry
from cupola.targets.registry import register_target
from tests.targets.toy_target import TOY

PROMPT = "a b c d e f g"  # what comes next is clear: kernels round differently, on AMX a prompt's products to bfloat16
GREEDY = cupola.SamplingParams(temperature=0, max_tokens=8)


def tokens(artifact: Path) -> tuple[int, ...]:
    llm = cupola.LLM(artifact, max_num_seqs=1, kv_memory="64MB")
    [request] = llm.generate([PROMPT], GREEDY)
    return tuple(request.outputs[0].token_ids)


@pytest.mark.by_turns
@pytest.mark.parametrize("quant", ["f32", "w8a8", "w4a8"])
def test_the_toy_gives_the_tokens_that_the_cpu_gives(
    quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    register_target(TOY)
    toy = cupola.compile("smollm2", target="toy", quant=quant, out=tmp_path / "toy", context=64)
    assert [library.target.name for library in toy.manifest.libraries] == ["toy"]
    assert [output.name for output in toy.manifest.function("forward").outputs] == ["logits"]  # the host finds the maxima
    assert [pool.name for pool in toy.manifest.kv.groups[0].pools][:2] == ["keys", "values"]
    if quant == "w8a8":
        cpu = cupola.compile("smollm2", quant=quant, out=tmp_path / "cpu", context=64).path
    else:
        cpu = request.getfixturevalue("smollm2" if quant == "f32" else "smollm2_w4a8").path
    assert len(tokens(toy.path)) == GREEDY.max_tokens and tokens(toy.path) == tokens(cpu)
