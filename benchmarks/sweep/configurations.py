"""Tiny configurations: what makes each `model_type` a small random model that still has the family's oddities.

A family of `models/` brings its own. For the others `GENERIC` gives every field that the configuration class has, and
`OWN` what the type needs beside or instead. A new type of transformers runs with `GENERIC` alone until it has a line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cupola.models import find_family

Fields = Mapping[str, object]

GENERIC: Fields = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "sliding_window": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 3, "cls_token_id": 1,
    # experts
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "shared_intermediate_size": 32, "num_experts": 8,
    "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "num_shared_experts": 1,
    "n_group": 1, "topk_group": 1,
    # latent attention and sparse indexers
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "index_topk": 8, "index_head_dim": 16, "index_n_heads": 2, "index_topk_blocks": 2, "index_block_size": 4,
    # recurrences
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8, "mamba_n_groups": 1, "chunk_size": 8,
    "mamba_dt_rank": 4,
    # decoders that were made to stand beside an encoder
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "d_model": 64, "ffn_dim": 128, "embedding_size": 64,
}  # fmt: skip
TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "max_position_embeddings")  # fmt: skip
"""What a text model inside of another one gets, where its configuration class isn't known beforehand."""

WINDOWED: Fields = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR: Fields = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTIONS: Fields = {"layer_types": ["conv", "full_attention"]}
NO_WINDOW: Fields = {"sliding_window": None}
DECODER: Fields = {"is_decoder": True}
LATENT: Fields = {"num_key_value_heads": 4}  # as many as attention heads
LATENT_EXPERTS: Fields = {**LATENT, "first_k_dense_replace": 1}
GPT: Fields = {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4}
VISION: Fields = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
VISION_35: Fields = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64}
SWA_HEADS: Fields = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16, "sliding_window_size": 8,
                     "d_rel": 4, "rel_extent": 16, "unpadded_vocab_size": 250}  # fmt: skip
ADAPTER: Fields = {"adapter_out_dim": 64}
LLAMA4: Fields = {"intermediate_size_mlp": 128, "num_local_experts": 4, "num_experts_per_tok": 1, "attention_chunk_size": 8}

OWN: Mapping[str, Fields] = {
    **dict.fromkeys(("flint", "cohere2_moe", "exaone_moe",
                     "granitemoe_swa", "kolibri1", "laguna", "mellum", "mimo_v2_flash"), WINDOWED),
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_next"), LINEAR),
    **dict.fromkeys(("axk1", "glm4_moe_lite", "minicpm3"), LATENT),
    **dict.fromkeys(("deepseek_v2", "deepseek_v32", "glm_moe_dsa"), LATENT_EXPERTS),
    **dict.fromkeys(("bart", "bert", "bert-generation", "bigbird_pegasus", "blenderbot", "blenderbot-small", "camembert", "data2vec-text",
                     "electra", "ernie", "mbart", "megatron-bert", "mvp", "pegasus", "plbart", "roberta", "roberta-prelayernorm",
                     "roformer", "xlm-roberta", "xlm-roberta-xl"), DECODER),
    "gpt_bigcode": GPT,
    "phimoe": NO_WINDOW,
    # dense
    "cohere_compass_text": {**WINDOWED, "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in
                                                             ("sliding_attention", "full_attention")}},
    "cpmant": {"dim_head": 16, "dim_ff": 128, "prompt_length": 4, "prompt_types": 4, "segment_types": 4},
    "gemma3n_text": {"vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 16, "altup_num_inputs": 2, "laurel_rank": 8,
                     "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
                     "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "hrm_text": {"num_layers_per_stack": 2},
    "xglm": {"d_model": 64, "ffn_dim": 128, "num_layers": 2, "attention_heads": 4},
    "xlm": {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "causal": True},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "d_head": 16},
    "youtu": {**LATENT, "initializer_range": 0.02},
    # mixtures of experts
    "afmoe": {**WINDOWED, "num_dense_layers": 1},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "axk2": {**LATENT, "gated_norm_rank": 8},
    "beam": {**WINDOWED, "mlp_layer_types": ["dense", "sparse"]},
    "dbrx": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
             "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2}},
    "deepseek_v4": {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8, "hc_mult": 2, "hc_sinkhorn_iters": 3,
                    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}, "partial_rotary_factor": 0.5},
    "dots1": {**WINDOWED, "first_k_dense_replace": 1},
    "dots3_note_text": {**LATENT, "shared_experts_intermediate_size": 32},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_experts": 8, "moe_num_shared_experts": 1},
    "hunyuan_v1_moe": {"moe_topk": 2},
    "hy_v4": {**LATENT, "hc_mult": 2},
    "inkling_text": {**SWA_HEADS, "num_attention_heads": 4},
    "inkling2_text": SWA_HEADS,
    "jetmoe": {"kv_channels": 16},
    "llama4_text": {**LLAMA4, "floor_scale": 16, "moe_layers": [1], "no_rope_layer_interval": 2},
    "longcat_flash": {**LATENT, "head_dim": 8, "num_layers": 2, "ffn_hidden_size": 128, "expert_ffn_hidden_size": 32, "moe_topk": 2,
                      "zero_expert_num": 2, "n_routed_experts": 4},
    "minimax_m3_vl_text": {"dense_intermediate_size": 64, "rotary_dim": 8},
    "qwen4_exp_text": {**LINEAR, "indexer_budget": 8, "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8,
                       "ngram_vocab_size_base": 100, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 1},
    "zaya": {"num_experts_per_tok": 1},
    # recurrences
    "bailing_hybrid": {**LATENT_EXPERTS, **LINEAR, "short_conv_kernel_size": 4, "num_mtp_layers": 0,
                       "mlp_layer_types": ["dense", "sparse"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**LATENT, **LINEAR, "linear_head_dim": 16, "linear_num_heads": 4, "num_local_experts": 8},
    "lfm2_moe": CONVOLUTIONS,
    "lfm3": {"layer_types": ["conv", "sliding_attention"]},
    "minimax": {**LINEAR, "block_size": 8},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 16,
                   "ssm_state_size": 16, "n_groups": 2, "moe_shared_expert_intermediate_size": 32},
    "olmo_hybrid": {**LINEAR, "linear_num_key_heads": 4},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8, "num_key_value_heads": 1},
    "reformer": {**DECODER, "attn_layers": ["local", "lsh"], "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32],
                 "num_attention_heads": 4, "attention_head_size": 16, "feed_forward_size": 128, "local_attn_chunk_length": 8,
                 "lsh_attn_chunk_length": 8},
    "rwkv": {"context_length": 256, "attention_hidden_size": 64},
    "zamba": {"num_hidden_layers": 4, "attention_hidden_size": 128, "attention_head_dim": 32,
              "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
              "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_key_value_heads": 4, "use_mem_rope": True},
    # made to stand beside an encoder, or made of one
    "big_bird": {**DECODER, "attention_type": "original_full"},
    "git": {"vision_config": VISION},
    "marian": {**DECODER, "decoder_vocab_size": 256, "forced_eos_token_id": 2},
    "prophetnet": {**DECODER, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                   "num_decoder_attention_heads": 4},
    "rembert": {**DECODER, "input_embedding_size": 64, "output_embedding_size": 64},
    "roc_bert": {**DECODER, "pronunciation_vocab_size": 256, "shape_vocab_size": 256, "pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "trocr": {**DECODER, "decoder_layers": 2, "decoder_ffn_dim": 128},
    "whisper": {**DECODER, "max_target_positions": 256, "num_mel_bins": 16, "begin_suppress_tokens": [3, 4]},
    "xmod": {**DECODER, "default_language": "en_XX"},
    # text and something else
    "dots3_note": {"text_config": {**LATENT, "shared_experts_intermediate_size": 32}, "vision_config": ADAPTER, "audio_config": ADAPTER},
    "emu3": {"text_config": {}, "vocabulary_map": {"<image>": 5},
             "vq_config": {"base_channels": 32, "codebook_size": 64, "hidden_size": 32, "channel_multiplier": [1, 1]}},
    "fuyu": {"text_config": {}, "image_token_id": 5},
    "gemma3": {"text_config": WINDOWED, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 250, "boi_token_index": 251,
               "eoi_token_index": 252},
    "gemma4": {"text_config": {**WINDOWED, "vocab_size_per_layer_input": 256, "hidden_size_per_layer_input": 16}},
    "gemma4_unified": {"text_config": WINDOWED},
    "gemma4_assistant": {"text_config": {**WINDOWED, "vocab_size_per_layer_input": 0, "hidden_size_per_layer_input": 0,
                                         "num_kv_shared_layers": 2}},
    "gemma4_unified_assistant": {"text_config": {**WINDOWED, "num_kv_shared_layers": 2}},
    "blt": {"encoder_hash_byte_group_vocab": 500,
            **{f"{part}_config": {**{name: GENERIC[name] for name in TEXT}, "hidden_size_global": 64}
               for part in ("patcher", "encoder", "decoder", "global")}},
    "got_ocr2": {"text_config": {},
                 "vision_config": {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
                                   "image_size": 64, "mlp_dim": 64, "global_attn_indexes": [0]}},
    "llama4": {"text_config": LLAMA4,
               "vision_config": {**VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}},
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
               "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_global_layers": 1,
                                 "attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_output_dim": 64,
                                 "intermediate_layers_indices": [0]}},
    "moshi": {"num_codebooks": 2, "audio_vocab_size": 32},
    "qwen3_5": {"text_config": LINEAR, "vision_config": VISION_35},
    "qwen3_5_moe": {"text_config": LINEAR, "vision_config": VISION_35},
}  # fmt: skip


def tiny_fields(model_type: str, config_class: Any) -> dict[str, object]:
    """The fields of the tiny configuration of a `model_type`, whose configuration class is given."""
    family = find_family(model_type)
    return dict(family.tiny) if family else filled(config_class, OWN.get(model_type, {}))


def filled(config_class: Any, own: Fields) -> dict[str, object]:
    """The fields of a configuration class: `own`, and `GENERIC` for what the class has beside; a field that has two names is given once."""
    aliases: Mapping[str, str] = getattr(config_class, "attribute_map", {})
    declared = {each.name for each in dataclasses.fields(config_class)} if dataclasses.is_dataclass(config_class) else set()
    fields = {name: value for name, value in GENERIC.items() if name in declared | set(aliases) and aliases.get(name) not in GENERIC}
    layers = own.get("layer_types")
    if isinstance(layers, list):
        fields["num_hidden_layers"] = len(layers)
    fields |= {name: _text_fields(config_class, value) if name == "text_config" else value for name, value in own.items()}
    return {name: value for name, value in fields.items() if aliases.get(name) not in fields}


def _text_fields(config_class: Any, own: Any) -> dict[str, object]:
    inner = getattr(config_class, "sub_configs", {}).get("text_config")
    if dataclasses.is_dataclass(inner) and hasattr(inner, "model_type"):
        return filled(inner, own)
    return {**{name: GENERIC[name] for name in TEXT}, **own}
