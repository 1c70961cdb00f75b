"""Models compiled for AMD's GPUs, run thread by thread on this CPU through the runtime that they get, over the names of HIP's functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cupola
from tests.checkpoints import answers_as_transformers, save_tiny

PROMPTS = [[5, 3, 9, 11, 2, 7, 1, 4, 8, 6, 10], [12, 3, 9], [1, 2, 3, 4, 5, 6, 7]]
PARAMS = cupola.SamplingParams(temperature=0, max_tokens=8, logprobs=3, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "llama")


def test_logits_match_transformers_and_decoding_gives_what_a_prompt_gives(tiny: Path, tmp_path: Path) -> None:
    artifact = cupola.compile(tiny, out=tmp_path / "artifact", target="softrocm:gfx942", quant="f32", block_size=4)
    assert b"hipModuleLaunchKernel" in (artifact.path / artifact.manifest.libraries[0].file).read_bytes()
    answers_as_transformers(cupola.LLM(artifact, max_num_seqs=2), tiny, PROMPTS, PARAMS)


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("architecture", "quant", "kv_dtype"),
    [("gfx942", "w4a16", "f16"), ("gfx1100", "f16", "f16"), ("gfx1100", "w8a16", "int8"), ("gfx942", "bf16", "bf16")],
)
def test_formats_give_what_they_give_on_the_cpu(architecture: str, quant: str, kv_dtype: str, tiny: Path, tmp_path: Path) -> None:
    """Within the rounding to 16 bits of factors here."""
    logits = []
    for target in (f"softrocm:{architecture}", "cpu:avx2"):
        artifact = cupola.compile(tiny, out=tmp_path / target, target=target, quant=quant, kv_dtype=kv_dtype)
        llm = cupola.LLM(artifact, max_num_seqs=1)
        logits.append(np.stack([llm.logits(PROMPTS[0]), llm.logits(PROMPTS[0][:3] * 3 + [1, 2])]))
    most = 2e-2 if quant == "bf16" else 4e-3
    assert np.abs(logits[0] - logits[1]).max() < most * np.abs(logits[1]).max()
