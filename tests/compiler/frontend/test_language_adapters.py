"""Adapters for each language: those of the default language compute what transformers computes, and no other is chosen in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from cupola.compiler.frontend.language_adapters import keep_default_language
from cupola.runtime.errors import UnsupportedError

TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 32,
    "max_position_embeddings": 32, "is_decoder": True, "languages": ["en_XX", "de_DE", "fr_XX"],
}  # fmt: skip
NORMS: dict[str, dict[str, Any]] = {
    "reused": {},
    "of its own": {"adapter_layer_norm": True},
    "none": {"adapter_reuse_layer_norm": False},
    "behind the residual": {"ln_before_adapter": False},
}


def made(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("xmod", **TINY, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


@pytest.mark.parametrize("norm", NORMS)
def test_the_default_language_is_kept(norm: str) -> None:
    model, tokens = made(default_language="de_DE", **NORMS[norm]), torch.tensor([[5, 9, 4]])
    with torch.no_grad():
        expected, other = model(tokens).logits, model(tokens, lang_ids=torch.tensor([2])).logits
        notes = keep_default_language(model, "config.json")
        torch.testing.assert_close(model(tokens).logits, expected)
    assert (other - expected).abs().max() > 1e-3 and "de_DE" in notes[0]
    assert not any("en_XX" in name or "fr_XX" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("language", [None, "sw_KE"])
def test_a_language_without_adapters_is_refused(language: str | None) -> None:
    with pytest.raises(UnsupportedError, match=rf"config\.json: default_language: is {language}.*en_XX, de_DE, fr_XX"):
        keep_default_language(made(default_language=language), "config.json")


def test_other_models_are_left_alone() -> None:
    assert keep_default_language(torch.nn.Linear(2, 2), "config.json") == ()
