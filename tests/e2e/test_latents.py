"""Multi-head latent attention: pages hold what keys and values are made of, with transformers' logits, and the same tokens however
sequences are cut into steps, in any company, from cached blocks and after preemption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.runtime.artifact.state import LATENT
from cupola.runtime.artifact.tensors import ITEM_BYTES
from tests.e2e.tiny_models import SIZES, assert_matches, tiny_model

RANK, TURNED, LAYERS = 32, 8, 2
CONFIG = {
    **SIZES, "num_key_value_heads": 4, "first_k_dense_replace": LAYERS, "kv_lora_rank": RANK, "q_lora_rank": None,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": TURNED, "v_head_dim": 24, "n_routed_experts": 8,
}  # fmt: skip
LENGTHS = (100, 1, 64, 7, 33, 150, 16, 5)
GREEDY = cupola.SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    tiny_model("deepseek_v2", **CONFIG).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def artifact(folder: Path) -> cupola.Artifact:
    return cupola.compile(folder / "model", out=folder / "artifact", quant="f32", target="cpu:batch-invariant")


def bytes_per_token(artifact: cupola.Artifact) -> float:
    kv = artifact.manifest.kv
    return kv.bytes_per_block / kv.block_size


def test_a_token_takes_a_row_of_the_checkpoints_size(artifact):
    kv = artifact.manifest.kv
    assert [(group.kind, group.key_dim, group.value_dim) for group in kv.groups] == [(LATENT, RANK + TURNED, RANK)]
    assert bytes_per_token(artifact) == LAYERS * (RANK + TURNED) * ITEM_BYTES["float32"]


def prompts() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(3, 250, length).tolist() for length in LENGTHS]


def tokens_of(llm: cupola.LLM, given: list[list[int]]) -> list[list[int]]:
    found = [list(output.outputs[0].token_ids) for output in llm.generate(given, GREEDY)]
    llm.engine.check_idle()
    return found


@pytest.fixture(scope="module")
def alone(artifact: cupola.Artifact) -> list[list[int]]:
    """The tokens of eight prompts, one after the other, each in one piece."""
    llm = cupola.LLM(artifact, enable_prefix_caching=False, num_scheduler_steps=1)
    return [tokens_of(llm, [prompt])[0] for prompt in prompts()]


@pytest.mark.parametrize("step_tokens", [7, 64])
def test_chunks_company_and_cached_blocks_change_no_token(artifact, alone, step_tokens):
    llm = cupola.LLM(artifact, max_num_batched_tokens=step_tokens, max_num_seqs=8)
    assert tokens_of(llm, prompts()) == alone
    assert tokens_of(llm, prompts()) == alone
    assert llm.generate([prompts()[0]], GREEDY)[0].num_cached_tokens > 0


@pytest.mark.by_turns
def test_chunks_change_no_token_of_quantized_weights(folder):
    """The products of the heads have no token in the last layer where a step computes a prompt's beginning alone."""
    artifact = cupola.compile(folder / "model", out=folder / "w4a8", quant="w4a8", target="cpu:batch-invariant")
    whole, chunks = (cupola.LLM(artifact, max_num_batched_tokens=size, max_num_seqs=1) for size in (256, 16))
    assert tokens_of(chunks, prompts()) == tokens_of(whole, prompts())


@pytest.mark.parametrize("swap_memory", [0, "1MB"])
def test_preemption_changes_no_token(artifact, alone, swap_memory, monkeypatch):
    monkeypatch.setattr("cupola.runtime.load_engine.choose_num_blocks", lambda *_: (14,))
    llm = cupola.LLM(artifact, max_num_seqs=8, swap_memory=swap_memory)
    assert tokens_of(llm, prompts()) == alone
    stats = llm.engine.stats()
    assert stats.num_preemptions > 0 and (stats.num_swapped_in > 0) == bool(swap_memory)


@pytest.mark.by_turns
def test_logits_are_transformers(tmp_path):
    artifact = assert_matches(tiny_model("deepseek_v2", **CONFIG), tmp_path)
    assert bytes_per_token(artifact) == LAYERS * (RANK + TURNED) * ITEM_BYTES["float32"]


@pytest.mark.by_turns
@pytest.mark.parametrize(("kv_dtype", "scales"), [("bf16", 0), ("int8", 4)])
def test_smaller_rows(folder, artifact, kv_dtype, scales):
    """In bfloat16 and int8, on the best instruction set that there is: as large as they should be, and the logits near those of float32."""
    small = cupola.compile(folder / "model", out=folder / kv_dtype, quant="f32", kv_dtype=kv_dtype)
    assert bytes_per_token(small) == LAYERS * ((RANK + TURNED) * ITEM_BYTES[small.manifest.kv.dtype] + scales)
    prompt = prompts()[0]
    found, exact = (cupola.LLM(each, max_num_batched_tokens=37).logits(prompt) for each in (small, artifact))
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
