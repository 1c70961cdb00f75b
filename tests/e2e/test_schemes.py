"""Quantized models: what is computed, against transformers on the values that the codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cupola
from cupola.models import find_family
from cupola.passes.encoders import encode
from cupola.passes.schemes import SCHEMES
from cupola.targets.formats.tensor import QuantizedTensor

WIDTHS = {
    "whole groups": {},
    "odd widths": {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3, "num_key_value_heads": 1},
}


def rounded(x: Any) -> Any:
    """Activations in int8, in groups of 32, as `targets.ops.Linear` has them."""
    import torch

    width = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -width % 32)).unflatten(-1, (-1, 32))
    step = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / step.clamp_min(1e-30)) * step).flatten(-2)[..., :width]


def quantized(model: Any, quant: str) -> Any:
    """The model with the weights that `quant` stores, and activations rounded where it rounds them."""
    import torch

    scheme = SCHEMES[quant]
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            continue
        storage = (scheme.embedding if "embed" in name or "lm_head" in name else scheme.linear).pick([])
        assert storage.format is not None
        weight = module.weight.detach().numpy().copy()
        stored = QuantizedTensor(storage.format, *encode(storage.format.name, weight))
        module.weight.data = torch.from_numpy(stored.values()[:, : weight.shape[1]].copy())
        if scheme.quantize_x and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0]),))
    return model


@pytest.mark.by_turns
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("quant", ["w8a8", "w4a8", "w8a16", "w4a16"])
def test_logits_are_those_of_the_stored_weights(quant: str, widths: str, tmp_path: Path) -> None:
    """An activation that stands between two steps may be rounded to either, which few logits depend on."""
    import torch
    import transformers

    torch.manual_seed(0)
    family = find_family("llama")
    assert family is not None
    config = transformers.AutoConfig.for_model("llama", **{**family.tiny, **WIDTHS[widths]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "model")
    target = "cpu:batch-invariant"  # of one path, in int8
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant=quant, kv_dtype="f32", target=target)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 40).tolist()
    with torch.no_grad():
        expected = quantized(model, quant)(torch.tensor([tokens])).logits[0].numpy()
    off = abs(cupola.LLM(artifact).logits(tokens) - expected)
    assert np.median(off) < 1e-6 and off.max() < 1e-2
