"""Tiny random models of transformers, compiled, and held against transformers' own logits in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

import cupola

BOUND = 1e-4
LENGTHS = (7, 40)  # the second comes in two chunks
NUM_DECODED = 8
SIZES = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""What most configurations have."""


def tiny_model(model_type: str, auto: Any = transformers.AutoModelForCausalLM, **config: Any) -> Any:
    """A random model in float32; biases and norms, which start out at 0 and 1, are moved away from there."""
    torch.manual_seed(0)
    model = auto.from_config(transformers.AutoConfig.for_model(model_type, **config), dtype=torch.float32).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


def assert_matches(model: Any, folder: Path) -> cupola.Artifact:
    """Compiles `model` and compares the logits of prompts, and of greedy decoding, with its own."""

    def reference(ids: list[int]) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0])

    model.save_pretrained(folder / "model")
    artifact = cupola.compile(folder / "model", out=folder / "artifact", quant="f32")
    llm = cupola.LLM(artifact, max_num_seqs=3, max_num_batched_tokens=32, kv_memory="64MB")
    random = np.random.default_rng(0)
    prompts = [random.integers(4, 250, length).tolist() for length in LENGTHS]
    for prompt in prompts:
        assert np.abs(llm.logits(prompt) - reference(prompt)).max() < BOUND
    params = cupola.SamplingParams(temperature=0, max_tokens=NUM_DECODED, ignore_eos=True, detokenize=False)
    for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True):
        chosen = list(output.outputs[0].token_ids)
        rows = reference(prompt + chosen[:-1])[len(prompt) - 1 :]
        assert len(chosen) == NUM_DECODED and all(row[token] > row.max() - BOUND for row, token in zip(rows, chosen, strict=True))
    return artifact
