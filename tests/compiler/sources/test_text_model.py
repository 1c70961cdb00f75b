"""The text model inside a model of text and images is found by structure: by transformers' own account of its configuration."""

from __future__ import annotations

from typing import Any

import pytest

from cupola.compiler.sources.config_check import check_config
from cupola.compiler.sources.text_model import text_fields, with_stored_head
from cupola.runtime.errors import SourceError, UnsupportedError

GEMMA3: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {"hidden_size": 64, "num_hidden_layers": 2},
    "vision_config": {"hidden_size": 32, "num_attention_heads": 4},
    "eos_token_id": [1, 106],
}


def test_the_fields_are_the_text_models_with_the_tokens_of_the_whole() -> None:
    text = text_fields(GEMMA3)
    assert (text["model_type"], text["hidden_size"], text["eos_token_id"]) == ("gemma3_text", 64, [1, 106])
    assert text["vocab_size"] == 262_208  # the class's own, as published files leave it out


def test_an_old_configuration_whose_text_fields_lie_at_the_top_is_read_too() -> None:
    old = {"model_type": "qwen2_vl", "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 256, "vision_config": {"depth": 1}}
    assert (text_fields(old)["hidden_size"], text_fields(old)["vocab_size"]) == (64, 256)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "t5", "nothing", None])
def test_of_a_model_of_text_alone_they_are_its_own(model_type: str | None) -> None:
    config = {"model_type": model_type, "hidden_size": 64}
    assert text_fields(config) is config


def test_a_stored_head_is_not_tied() -> None:
    for name in ("lm_head.weight", "language_model.lm_head.weight"):
        untied = with_stored_head(GEMMA3, [name])
        assert not untied["tie_word_embeddings"] and not untied["text_config"]["tie_word_embeddings"]
    assert with_stored_head(GEMMA3, ["model.norm.weight"]) == GEMMA3


@pytest.mark.parametrize("where", ["whole", "text"])
def test_what_either_says_of_its_weights_is_heard(where: str) -> None:
    quantized = {"quantization_config": {"quant_method": "awq"}}
    config = GEMMA3 | quantized if where == "whole" else GEMMA3 | {"text_config": GEMMA3["text_config"] | quantized}
    with pytest.raises(UnsupportedError, match="already quantized"):
        check_config(config, "config.json")


def test_sizes_are_those_of_the_text_model() -> None:
    assert check_config(GEMMA3 | {"text_config": {"vocab_size": 300}}, "config.json") == 300
    with pytest.raises(SourceError, match=r"^config\.json: transformers refuses it"):
        check_config(GEMMA3 | {"text_config": {"hidden_size": "many"}}, "config.json")
    with pytest.raises(SourceError, match="num_hidden_layers: is 0"):
        check_config(GEMMA3 | {"text_config": {"num_hidden_layers": 0}}, "config.json")


def test_fields_beside_a_towers_are_a_copy() -> None:
    """Chameleon is no model of text alone, though its configuration has the text model's fields at the top."""
    config = {"model_type": "chameleon", "hidden_size": 64, "vq_config": {"embed_dim": 32}}
    assert text_fields(config) == config and text_fields(config) is not config
