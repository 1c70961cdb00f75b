"""Models that carry a state from token to token, compiled for CUDA and run thread by thread on this CPU: states, checkpoints and copies in
swap memory are a device's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.models import find_family
from tests.e2e.tiny_models import tiny_model

BLOCK = 4  # tokens: checkpoints are at multiples
GREEDY = cupola.SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module", params=["lfm2", pytest.param("qwen3_5_text", marks=pytest.mark.by_turns(together="qwen3_5_text on a GPU"))])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, family = tmp_path_factory.mktemp(request.param) / "model", find_family(request.param)
    assert family is not None
    tiny_model(family.model_type, **family.tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def artifact(model: Path) -> cupola.Artifact:
    return cupola.compile(model, out=model.with_name("artifact"), target="softgpu", quant="f32", block_size=BLOCK)


@pytest.fixture(scope="module")
def prompts(artifact: cupola.Artifact) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(3, artifact.manifest.model.vocab_size, length).tolist() for length in (11, 1, 7)]


def outputs(llm: cupola.LLM, prompts: list[list[int]]) -> list[list[int]]:
    found = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, GREEDY)]
    llm.engine.check_idle()
    return found


def test_logits_match_transformers(model: Path, artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    import torch
    import transformers

    reference, llm = transformers.AutoModelForCausalLM.from_pretrained(model).eval(), cupola.LLM(artifact, max_num_seqs=2)
    for prompt in prompts:
        with torch.no_grad():
            expected = reference(torch.tensor([prompt])).logits[0].numpy()
        assert np.abs(llm.logits(prompt) - expected).max() < 1e-4


def test_tokens_are_the_same_in_chunks_from_checkpoints_and_after_swaps(artifact: cupola.Artifact, prompts: list[list[int]]) -> None:
    """Three sequences at once, a few tokens a step; again, going on from copies of states; and with room for two of them."""
    alone = [outputs(cupola.LLM(artifact, max_num_seqs=1, enable_prefix_caching=False), [prompt])[0] for prompt in prompts]
    llm = cupola.LLM(artifact, max_num_seqs=3, max_num_batched_tokens=5)
    assert outputs(llm, prompts) == alone
    longer = [prompt + tokens for prompt, tokens in zip(prompts, alone, strict=True)]
    computed = llm.engine.stats().num_step_tokens
    answers = outputs(llm, longer)
    assert llm.engine.stats().num_step_tokens - computed < sum(map(len, longer)) + len(prompts) * GREEDY.max_tokens
    assert answers == outputs(cupola.LLM(artifact, max_num_seqs=3, enable_prefix_caching=False), longer)
    kv = artifact.manifest.kv
    memory = kv.num_bytes([6] * len(kv.paged) + [2])
    tight = cupola.LLM(artifact, max_num_seqs=3, kv_memory=memory, swap_memory=memory)
    assert outputs(tight, prompts) == alone
    stats = tight.engine.stats()
    assert stats.num_preemptions > 0 and stats.num_swapped_in > 0
