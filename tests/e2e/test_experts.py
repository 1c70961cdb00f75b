"""Mixtures of experts beyond their verified families: quantized, in any company, and as a part of other models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.models import find_family
from tests.e2e.tiny_models import SIZES, assert_matches, tiny_model


@pytest.mark.by_turns
def test_a_token_has_the_same_bits_whatever_stands_beside_it(tmp_path: Path) -> None:
    """Of a prompt in one step, in chunks, and with another one beside it: each time other tokens go to its experts."""
    tiny_model("qwen3_moe", **find_family("qwen3_moe").tiny).save_pretrained(tmp_path / "model")
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant="w4a8", target="cpu:batch-invariant")
    first, second = (np.random.default_rng(seed).integers(4, 250, 24).tolist() for seed in (0, 1))
    whole = cupola.LLM(artifact, max_num_batched_tokens=128).logits(first)
    for chunk in (5, 16):
        np.testing.assert_array_equal(cupola.LLM(artifact, max_num_batched_tokens=chunk, kv_memory="64MB").logits(first), whole)
    params = cupola.SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=5, detokenize=False)
    alone, beside = (cupola.LLM(artifact, max_num_seqs=2).generate(prompts, params)[0] for prompts in ([first], [first, second]))
    assert alone.outputs[0].token_ids == beside.outputs[0].token_ids and alone.outputs[0].logprobs == beside.outputs[0].logprobs
    # Before its last step a prompt asks for no logits, and so the last layer's experts have no token.
    in_steps = cupola.LLM(artifact, max_num_batched_tokens=8).generate([first], params)[0]
    assert in_steps.outputs[0].token_ids == alone.outputs[0].token_ids and in_steps.outputs[0].logprobs == alone.outputs[0].logprobs


@pytest.mark.by_turns
def test_experts_beside_a_dense_layer(tmp_path: Path) -> None:
    """As Gemma 4 has them: each layer adds up both."""
    experts = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 32}
    layers = {"head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    embeddings = {"vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 16}
    assert_matches(tiny_model("gemma4_text", **{**SIZES, **experts, **layers, **embeddings}), tmp_path)
