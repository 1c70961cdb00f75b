"""Every verified family: a tiny random model, compiled, against transformers in float32.

Families that are much used run each time, the others by turns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.models import FAMILIES, find_family, llama
from tests.turns import by_family

LENGTHS, NUM_DECODED, BOUND = (40, 5, 23), 16, 1e-4  # the first step is a chunk of the first prompt, and wants no logits
PARAMS = cupola.SamplingParams(temperature=0, max_tokens=NUM_DECODED, logprobs=20, ignore_eos=True, detokenize=False)


@pytest.mark.parametrize("model_type", by_family(family.model_type for family in FAMILIES))
def test_prompt_and_decoding_match_transformers(model_type: str, tmp_path: Path) -> None:
    import torch
    import transformers

    family = find_family(model_type)
    assert family is not None
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **family.tiny)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for value in model.parameters():  # biases and norms start out at 0 and 1, which hides mistakes
            value.add_(0.05 * torch.randn_like(value))
    model.save_pretrained(tmp_path / "model")
    llm = cupola.LLM(cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant="f32"), max_num_seqs=3, max_num_batched_tokens=32)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, config.vocab_size, length).tolist() for length in LENGTHS]

    def reference(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids]), use_cache=False).logits[0]  # with a cache xLSTM's fails in chunks

    for prompt, output in zip(prompts, llm.generate(prompts, PARAMS), strict=True):
        assert np.abs(llm.logits(prompt) - reference(prompt).numpy()).max() < BOUND
        chosen, steps = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        assert len(chosen) == NUM_DECODED and steps is not None
        rows = torch.log_softmax(reference(prompt + chosen[:-1])[len(prompt) - 1 :], -1).numpy()
        for row, step, token in zip(rows, steps, chosen, strict=True):
            assert row[token] > row.max() - BOUND
            assert max(abs(row[other] - entry.logprob) for other, entry in step.items()) < BOUND


def test_a_family_that_nobody_verified_compiles_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr("cupola.compiler.frontend.trace.find_family", lambda _: None)
    config = transformers.AutoConfig.for_model("llama", **llama.FAMILY.tiny)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant="f32")
    assert any("llama is not verified" in note for note in artifact.manifest.notes)
    assert cupola.LLM(artifact).logits([1, 2, 3]).shape == (3, 256)
