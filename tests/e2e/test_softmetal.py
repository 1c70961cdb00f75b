"""Models compiled for Metal, run thread by thread on this CPU through the runtime that Macs get, on a stand-in for Metal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.models import cohere, llama
from cupola.models.family import Family
from tests.checkpoints import answers_as_transformers, save_tiny
from tests.conftest import Compiled
from tests.targets.metal.mach_o import ARM64, read_dylib

PROMPTS = [[5, 3, 9, 11, 2, 7, 1, 4, 8, 6, 10], [12, 3, 9], [1, 2, 3, 4, 5, 6, 7]]
PARAMS = cupola.SamplingParams(temperature=0, max_tokens=12, logprobs=3, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.mark.parametrize(
    "family", [llama.FAMILY, pytest.param(cohere.FAMILY, marks=pytest.mark.by_turns)], ids=lambda family: family.model_type
)
def test_logits_match_transformers_and_decoding_gives_what_a_prompt_gives(family: Family, tmp_path: Path) -> None:
    """Cohere's norms, which have no shift, are nobody's kernels: their sums stay in a thread."""
    tiny = save_tiny(tmp_path / "model", family.model_type)
    artifact = cupola.compile(tiny, out=tmp_path / "artifact", target="softmetal", quant="f32", block_size=4)
    answers_as_transformers(cupola.LLM(artifact, max_num_seqs=2), tiny, PROMPTS, PARAMS)


@pytest.mark.by_turns
@pytest.mark.parametrize(("quant", "kv_dtype"), [("f16", "f16"), ("bf16", "bf16"), ("w8a16", "int8"), ("w4a16", "f16"), ("f8a16", "f16")])
def test_formats_give_what_they_give_on_the_cpu(quant: str, kv_dtype: str, tiny: Path, tmp_path: Path) -> None:
    logits = []
    for target in ("softmetal", "cpu:avx2"):
        llm = cupola.LLM(cupola.compile(tiny, out=tmp_path / target, target=target, quant=quant, kv_dtype=kv_dtype), max_num_seqs=1)
        logits.append(np.stack([llm.logits(PROMPTS[0]), llm.logits(PROMPTS[0][:3] * 3 + [1, 2])]))
    assert np.abs(logits[0] - logits[1]).max() < 1e-4 * np.abs(logits[1]).max()


@pytest.mark.by_turns
def test_a_real_model(smollm2: Compiled, tmp_path: Path) -> None:
    compiled = cupola.compile("smollm2", target="softmetal", quant="w4a16", out=tmp_path / "artifact", context=64)
    answers = [
        cupola.LLM(artifact, max_num_seqs=1, kv_memory="64MB").generate(
            ["a b c d e f g"], cupola.SamplingParams(temperature=0, max_tokens=5)
        )
        for artifact in (compiled.path, smollm2.path)
    ]
    chosen, expected = (answer[0].outputs[0].token_ids for answer in answers)
    assert len(chosen) == 5 and chosen == expected


def test_an_artifact_for_macs_is_refused_here_by_name(tiny: Path, tmp_path: Path) -> None:
    artifact = cupola.compile(tiny, out=tmp_path / "artifact", target="metal", quant="w4a16")
    assert read_dylib(artifact.path / "lib.so").processor == ARM64
    with pytest.raises(cupola.ArtifactError, match="is 'aarch64-macos', this"):
        cupola.LLM(artifact)
