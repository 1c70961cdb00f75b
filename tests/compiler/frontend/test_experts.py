"""Experts are led to the marker wherever a model holds them."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from cupola.compiler.frontend.experts import mark_experts
from cupola.models import find_family


def test_experts_of_a_text_model_inside_another() -> None:
    """The outer class stands in a file without experts, so transformers would not set it there."""
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28}
    text = {**find_family("mixtral").tiny, "model_type": "mixtral"}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model("llava", text_config=text, vision_config=vision))
    mark_experts(model)
    assert model.config.text_config._experts_implementation == "cupola"
