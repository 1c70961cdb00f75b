"""Cases that an importer easily gets wrong, model by model: compiled, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.e2e.tiny_models import SIZES, assert_matches, tiny_model

FALCON = {"hidden_size": 96, "num_hidden_layers": 2, "vocab_size": 256, "max_position_embeddings": 256}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
DECODER = {
    "vocab_size": 256, "d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 128, "is_decoder": True,
    "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 128, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "falcon alibi": {**FALCON, "num_attention_heads": 6, "alibi": True, "multi_query": False},  # six: two series of slopes
    "falcon 40b": {**FALCON, "num_attention_heads": 6, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon 40b alibi": {**FALCON, "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": True},
    "ministral3": SIZES | {"head_dim": 16},  # divides whole numbers
    "gpt_bigcode": {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256},  # reshapes to the same shape
    "minicpm3": SIZES | LATENT,  # fills an empty tensor by parts
    "roberta": SIZES | {"is_decoder": True, "pad_token_id": 3},  # positions begin at 4
    "biogpt": SIZES,  # makes a mask of ones where it is given none
    "bart": DECODER,  # counts its tokens by itself, and makes a mask for an encoder that is not there
}


@pytest.mark.by_turns
@pytest.mark.parametrize("name", CASES)
def test_matches_transformers(name: str, tmp_path: Path) -> None:
    assert_matches(tiny_model(name.split()[0], **CASES[name]), tmp_path)


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
TEXT = SIZES | {"head_dim": 16}
WRAPPERS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16},
        "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252,
    },
    "llava": {
        "text_config": TEXT | {"model_type": "llama"}, "vision_config": VISION | {"model_type": "clip_vision_model"},
        "image_token_index": 250, "tie_word_embeddings": False,
    },
    "qwen2_5_vl": {  # of text alone, the three axes of positions are equal
        "text_config": TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}},
        "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64},
    },
}  # fmt: skip


@pytest.mark.by_turns
@pytest.mark.parametrize("model_type", WRAPPERS)
def test_the_text_model_of_a_model_of_text_and_images(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, transformers.AutoModelForImageTextToText, **WRAPPERS[model_type])
    artifact = assert_matches(model, tmp_path)
    tower = [name for name in model.state_dict() if "vis" in name or "projector" in name]
    (note,) = [note for note in artifact.manifest.notes if note.startswith(f"this is the text model of {model_type} alone: tokens do not")]
    assert note.endswith(f", and {len(tower)} tensors of the checkpoint are left out")
    assert not any("does not use" in note for note in artifact.manifest.notes)
