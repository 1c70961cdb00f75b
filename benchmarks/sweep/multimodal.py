"""Tiny configurations of models of text and images, or sound: a text model as the first table has them, and towers of one layer.

`TOWER` gives every field that a tower's configuration class has, and `OWN_WHOLE` what a type needs beside or instead, part by part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from configurations import Fields, filled, tiny_fields
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cupola.models import find_family

TOWER: Fields = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
    "num_key_value_heads": 4, "head_dim": 8, "depth": 1, "embed_dim": 32, "num_heads": 4, "out_hidden_size": 64, "mlp_dim": 64,
    "vision_output_dim": 64, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "ffn_dim": 64,
    "output_dim": 64, "num_mel_bins": 16, "projection_dim": 32, "encoder_hidden_size": 32, "vocab_size": 64, "num_global_layers": 1,
    "attention_heads": 4, "intermediate_layers_indices": [0], "deepstack_visual_indexes": [0], "text_hidden_size": 64,
    "hidden_dim": 32, "num_layers": 1, "output_channels": 16, "output_hidden_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
"""What each part beside the text model gets of what its class has."""


def _mrope(*sections: int, **more: object) -> Fields:
    """A text model whose rotary embedding has three axes of positions, which are equal where there is no image."""
    return {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}}}


TOKENS: Fields = {"image_token_id": 250, "image_token_index": 250, "video_token_id": 251, "video_token_index": 251, "audio_token_id": 252,
                  "audio_token_index": 252, "vision_start_token_id": 253, "vision_end_token_id": 254}  # fmt: skip
"""Ids of what stands for an image or a sound, which prompts of text do not have."""

OWN_WHOLE: Mapping[str, Fields] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "paddleocr_vl", "qwen2_5_omni_thinker"), _mrope(4, 2, 2)),
    **dict.fromkeys(("glm4v", "glm46v", "glmga"), _mrope(2, 3, 3, partial_rotary_factor=1.0)),
    "glm_ocr": _mrope(2, 3, 3),
    "glm4v_moe": _mrope(1, 1, 2, partial_rotary_factor=0.5),
    "cosmos3_edge": _mrope(4, 2, 2),
    "ernie4_5_vl_moe": {
        "text_config": {"moe_intermediate_size": [32, 32], "moe_num_experts": 4, "moe_k": 2, **_mrope(3, 3, 2)["text_config"]}
    },
    "janus": {"vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 64}},
    "chameleon": {
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_embeddings": 64, "resolution": 28},
        "vocabulary_map": {"<image>": 250, "IMGIMGA250Z": 249},
    },
    "emu3": {
        "vq_config": {"base_channels": 32, "codebook_size": 64, "hidden_size": 32, "channel_multiplier": [1, 1]},
        "vocabulary_map": {"<image>": 250},
    },
    "molmo2": {"vision_config": {"image_size": [28, 28]}, "adapter_config": {"image_size": [28, 28]}},
    "kosmos-2.5": {"text_config": {"vocab_size": 256, "layers": 2, "max_position_embeddings": 256}},
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]}},
    "gemma3n": {
        "text_config": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4},
        "audio_config": {"hidden_size": 32, "conf_num_attention_heads": 4, "conf_num_hidden_layers": 1},
    },
}


def whole_fields(model_type: str) -> dict[str, object]:
    """The fields of the tiny configuration of a model of text and something else."""
    config_class = CONFIG_MAPPING[model_type]
    own, parts = OWN_WHOLE.get(model_type, {}), _parts(config_class)
    fields = filled(config_class, {**_declared(config_class, TOKENS), **{name: value for name, value in own.items() if name not in parts}})
    return fields | {name: _part(part, own.get(name, {})) for name, part in parts.items()}


def _parts(config_class: Any) -> dict[str, Any]:
    """The class of each configuration inside of another, as transformers makes it where none is given."""
    whole = config_class()
    found = {name: getattr(whole, name, None) for name in getattr(config_class, "sub_configs", {})}
    return {name: type(part) for name, part in found.items() if part is not None}


def _part(part: Any, own: Any) -> dict[str, object]:
    if getattr(part, "sub_configs", None):
        return {name: _part(inner, own.get(name, {})) for name, inner in _parts(part).items()} | {
            name: value for name, value in own.items() if name not in part.sub_configs
        }
    model_type = str(part.model_type)
    if {"vocab_size", "rope_parameters"} <= _names(part) or find_family(model_type):  # a text model
        return {"model_type": model_type, **tiny_fields(model_type, part), **own}
    return {"model_type": model_type, **_declared(part, TOWER), **own}


def _declared(config_class: Any, fields: Fields) -> dict[str, object]:
    return {name: value for name, value in fields.items() if name in _names(config_class)}


def _names(config_class: Any) -> set[str]:
    return {each.name for each in dataclasses.fields(config_class)} if dataclasses.is_dataclass(config_class) else set()
