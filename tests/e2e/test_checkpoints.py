"""Quantized checkpoints end to end: logits against transformers on the values that the formats' own arithmetic gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cupola
from cupola.models import find_family
from tests.e2e.stored_model import logits_of, prompts_of, tiny_model
from tests.e2e.tiny_models import tiny_model as mixture
from tests.quantized_checkpoints import KINDS

SIZES = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3, "num_key_value_heads": 1, "num_hidden_layers": 1}
TARGET = "cpu:batch-invariant"
# Every method once, and what makes other code of it; what the rest is read as, tests/compiler/sources/checkpoints/ says.
TRIED = (
    "gptq", "gptq act-order", "awq", "compressed-tensors w4a16, zeros, act-order", "compressed-tensors w8a8", "compressed-tensors nvfp4",
    "fp8 of blocks", "fbgemm fp8", "modelopt nvfp4", "bitsandbytes nf4, nested", "bitsandbytes fp4", "bitsandbytes int8", "hqq",
    "torchao int4", "torchao int8", "autoround awq",
)  # fmt: skip


def save(model: Any, kind: str, folder: Path) -> Path:
    """The model as a checkpoint of that kind, its linear layers quantized; they become what they are read as."""
    import torch

    model.save_pretrained(folder)
    tensors, metadata = {}, {}
    for name, value in model.state_dict().items():
        weight = value.detach().numpy()
        if name == "lm_head.weight" or not name.endswith("proj.weight"):
            tensors[name] = weight.copy()
            continue
        stored, values = KINDS[kind].write(weight)
        tensors |= {name.removesuffix(".weight") + end: np.ascontiguousarray(part) for end, part in stored.items()}
        metadata |= KINDS[kind].metadata(name)
        value.copy_(torch.from_numpy(values))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", **metadata})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": KINDS[kind].settings}))
    return folder


def compiled(folder: Path, quant: str, out: Path) -> cupola.Artifact:
    return cupola.compile(folder, out=out, quant=quant, kv_dtype="f32", target=TARGET)


@pytest.mark.by_turns
@pytest.mark.parametrize("kind", TRIED)
def test_logits_are_those_of_the_values(kind: str, tmp_path: Path) -> None:
    model = tiny_model(**SIZES)
    artifact = compiled(save(model, kind, tmp_path / "model"), "auto", tmp_path / "artifact")
    expected, llm = logits_of(model), cupola.LLM(artifact)
    for prompt, logits in zip(prompts_of(model), expected, strict=True):
        np.testing.assert_allclose(llm.logits(prompt.tolist()), logits, atol=2e-6 * abs(logits).max())
    manifest = artifact.manifest
    assert manifest.scheme == "keep-a16" and any("quant auto is keep-a16" in note for note in manifest.notes)
    is_kept = any("of the weights, 7 keep their" in note for note in manifest.notes)
    assert is_kept == bool(KINDS[kind].format), manifest.notes


@pytest.mark.by_turns
def test_other_schemes_keep_codes_or_say_what_became_of_them(tmp_path: Path) -> None:
    """w4a8 takes the codes of a checkpoint of 4 bits, in its groups; f32 their values; what 4 bits can't hold is quantized again."""
    model = tiny_model(**SIZES)
    folder = save(model, "gptq act-order", tmp_path / "gptq")
    notes = compiled(folder, "w4a8", tmp_path / "w4a8").manifest.notes
    assert any("7 keep their GPTQ of 4 bits blocks" in note and "2 are quantized" in note for note in notes), notes
    artifact = compiled(folder, "f32", tmp_path / "f32")
    assert any("7 weights that come quantized" in note and "--quant keep-a16" in note for note in artifact.manifest.notes)
    expected, llm = logits_of(model), cupola.LLM(artifact)
    for prompt, logits in zip(prompts_of(model), expected, strict=True):
        np.testing.assert_allclose(llm.logits(prompt.tolist()), logits, atol=2e-6 * abs(logits).max())
    folder = save(model, "compressed-tensors w8a8", tmp_path / "int8")
    notes = compiled(folder, "w4a16", tmp_path / "w4a16").manifest.notes
    assert any("7 are quantized from int8 to 4 bits" in note for note in notes), notes


@pytest.mark.by_turns
def test_single_experts_keep_their_codes(tmp_path: Path) -> None:
    """Mixtral's, each quantized by itself: stacked, and multiplied as the codes that they are."""
    import torch

    family = find_family("mixtral")
    assert family is not None
    model, folder, kind = mixture("mixtral", **family.tiny), tmp_path / "model", KINDS["gptq"]
    model.save_pretrained(folder)
    held, values = load_file(folder / "model.safetensors"), dict[str, np.ndarray]()
    for name in [name for name in held if ".experts." in name]:
        stored, values[name] = kind.write(held.pop(name))
        held |= {name.removesuffix(".weight") + end: np.ascontiguousarray(part) for end, part in stored.items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": kind.settings}))
    for layer in range(model.config.num_hidden_layers):
        experts, start = model.model.layers[layer].mlp.experts, f"model.layers.{layer}.block_sparse_moe.experts"
        for number in range(model.config.num_local_experts):
            gate, down, up = (torch.from_numpy(values[f"{start}.{number}.w{part}.weight"]) for part in (1, 2, 3))
            experts.gate_up_proj.data[number], experts.down_proj.data[number] = torch.cat([gate, up]), down
    artifact = compiled(folder, "auto", tmp_path / "artifact")
    llm = cupola.LLM(artifact)
    for prompt, logits in zip(prompts_of(model), logits_of(model), strict=True):
        np.testing.assert_allclose(llm.logits(prompt.tolist()), logits, atol=1e-5 * abs(logits).max())
    assert any(f"of the weights, {2 * model.config.num_hidden_layers} keep their" in note for note in artifact.manifest.notes)
