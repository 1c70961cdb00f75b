"""The text model is found inside a model of text and images, by any of the names that checkpoints give it."""

from __future__ import annotations

import numpy as np
import pytest

from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.sources.text_model import has_text_model, text_config, text_tensors
from cupola.runtime.errors import SourceError, UnsupportedError

GEMMA3 = {"model_type": "gemma3", "text_config": {"hidden_size": 64, "num_hidden_layers": 2}, "eos_token_id": [1, 106]}
TENSOR = LazyTensor("", (1,), "float32", lambda: np.zeros(1, np.float32))


@pytest.mark.parametrize(
    "names",
    [
        ("language_model.model.norm.weight", "language_model.lm_head.weight"),
        ("model.language_model.norm.weight", "lm_head.weight"),
        ("model.text_model.norm.weight", "lm_head.weight"),
    ],
)
def test_tensors_get_the_names_of_the_text_model(names: tuple[str, str]) -> None:
    others = ("vision_tower.encoder.weight", "model.vision_tower.norm.weight", "multi_modal_projector.weight")
    found = text_tensors(dict.fromkeys((*names, *others), TENSOR))
    assert {name: tensor.name for name, tensor in found.items()} == {name: name for name in ("model.norm.weight", "lm_head.weight")}


def test_the_configuration_is_the_text_models_with_the_tokens_of_the_whole() -> None:
    text = text_config(GEMMA3, {"model.norm.weight": TENSOR}, "config.json")
    assert (text["model_type"], text["hidden_size"], text["eos_token_id"]) == ("gemma3_text", 64, [1, 106])
    assert text["tie_word_embeddings"] and not text_config(GEMMA3, {"lm_head.weight": TENSOR}, "config.json")["tie_word_embeddings"]


def test_only_models_whose_text_model_stands_for_itself_are_taken_apart() -> None:
    assert (
        has_text_model(GEMMA3) and not has_text_model({**GEMMA3, "model_type": "mllama"}) and not has_text_model({"model_type": "gemma3"})
    )


def test_what_the_whole_says_of_its_weights_is_heard() -> None:
    with pytest.raises(UnsupportedError, match="already quantized"):
        text_config({**GEMMA3, "quantization_config": {"quant_method": "awq"}}, {}, "config.json")
    with pytest.raises(SourceError, match=r"^config\.json: transformers refuses it"):
        text_config({**GEMMA3, "text_config": {"hidden_size": "many"}}, {}, "config.json")
