"""A GGUF file of many tensor types: its weights are kept, and logits are those of transformers on what gguf-py makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM

import cupola
from cupola.compiler.sources import Source, open_source
from cupola.runtime.artifact.tensors import ITEM_BYTES
from cupola.targets.formats.ggml import GGML_FORMATS
from tests.compiler.sources.conftest import TINY, add_fields, add_tokenizer, gguf_name
from tests.e2e.stored_model import rounded

# By a part of a tensor's name: its type, and where in a block its super scales are. Of q, k and v two share a type, of gate and up none.
KINDS: dict[str, tuple[Kind, tuple[int, ...]]] = {
    "q_proj": (Kind.Q4_K, (0, 2)),
    "k_proj": (Kind.Q4_K, (0, 2)),
    "v_proj": (Kind.Q6_K, (208,)),
    "o_proj": (Kind.Q5_K, (0, 2)),
    "gate_proj": (Kind.Q3_K, (108,)),
    "up_proj": (Kind.Q2_K, (80, 82)),
    "down_proj": (Kind.IQ4_XS, (0,)),
    "embed_tokens": (Kind.Q6_K, (208,)),
}
SPREAD = 0.05  # of weights
PROMPTS = np.random.default_rng(1).integers(0, TINY["vocab_size"], (3, 30))


def blocks_of(kind: Kind, scales_at: tuple[int, ...], shape: tuple[int, int]) -> np.ndarray:
    """Any bytes but for super scales, so that weights spread as those of models do."""
    random, (num_values, num_bytes) = np.random.default_rng(0), gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (shape[0], shape[1] // num_values, num_bytes)).astype("uint8")

    def scale_by(scale: float) -> float:
        for at in scales_at:
            data[..., at : at + 2] = np.array([scale], "float16").view("uint8")
        return float(gguf.dequantize(data.reshape(shape[0], -1), kind).std())

    scale_by(SPREAD / scale_by(1.0))
    return data.reshape(shape[0], -1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = AutoConfig.for_model("llama", **{**TINY, **sizes})
    path = tmp_path_factory.mktemp("kinds") / "kinds.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_fields(writer, config)
    add_tokenizer(writer, "gpt-2")
    torch.manual_seed(0)
    for name, parameter in AutoModelForCausalLM.from_config(config).named_parameters():
        kind, at = next((found for part, found in KINDS.items() if part in name), (Kind.F32, ()))
        if at:
            writer.add_tensor(gguf_name(name), blocks_of(kind, at, tuple(parameter.shape)), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.random.default_rng(0).uniform(0.5, 1.5, parameter.shape).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def in_torch(source: Source, group_size: int) -> Any:
    """Torch's logits for the prompts, on the dequantized weights and, if there is a group size, on activations in int8."""
    config = AutoConfig.for_model(**source.config)
    model = AutoModelForCausalLM.from_config(config).eval()
    weights = {name: torch.from_numpy(np.array(tensor.load())) for name, tensor in source.tensors.items()}
    model.load_state_dict(weights, strict=False)
    assert {name for name, _ in model.named_parameters()} == set(weights)
    for module in model.modules():
        if group_size and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0], group_size),))
    with torch.no_grad():
        return model(torch.tensor(PROMPTS)).logits.numpy()


@pytest.mark.by_turns
@pytest.mark.parametrize("quant", ["keep-a16", "keep-a8"])
def test_every_tensor_is_kept_and_multiplied_as_it_is(quant: str, file: Path, tmp_path: Path) -> None:
    artifact = cupola.compile(file, out=tmp_path / "kinds", quant=quant, kv_dtype="f32", target="cpu:batch-invariant")
    counts = {kind.name: 2 * sum(other == kind for other, _ in KINDS.values()) for kind, _ in KINDS.values()}
    counts["Q6_K"] = 3  # the embedding is one
    clauses = [f"{count} keep their {kind} blocks" for kind, count in sorted(counts.items())]
    assert f"of the weights, {', '.join(clauses)}" in artifact.manifest.notes
    llm, expected = cupola.LLM(artifact), in_torch(open_source(file), 32 * (quant == "keep-a8"))
    off = min((abs(llm.logits(prompt.tolist()) - logits) for prompt, logits in zip(PROMPTS, expected, strict=True)), key=np.median)
    scale = np.sqrt(np.var(expected))
    assert np.median(off) < 1e-5 * scale and off.max() < 1e-2 * scale
    num_bytes = sum(math.prod(weight.shape) * ITEM_BYTES[weight.dtype] for weight in artifact.manifest.weights)
    stored = {name: tensor for name, tensor in open_source(file).tensors.items() if tensor.format}
    bits = sum(GGML_FORMATS[tensor.stored_as].bits_per_value * np.prod(tensor.shape) for tensor in stored.values())
    assert num_bytes < 1.05 * bits / 8
