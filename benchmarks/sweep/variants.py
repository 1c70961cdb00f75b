"""Oddities that configurations can ask for: for each group of them a tiny model of a type that has it, beside the type's own line.

A name is the model type, a colon, and what is odd. The fields stand beside or instead of the type's tiny ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from configurations import Fields

_FOUR: Fields = {"num_hidden_layers": 4}
_GROUPS: Fields = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
_LONG: Fields = {"original_max_position_embeddings": 64}  # of 256 positions
_BIASES: Fields = {"attention_bias": True, "mlp_bias": True}
_MULTIPLIERS: Fields = {
    "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.015,
}  # fmt: skip


def _rope(kind: str, **more: object) -> Fields:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def _longrope(num_factors: int, original: int, **more: object) -> Fields:
    """With its long factors if the original context is shorter than every prompt, with its short ones if it is no shorter than the context.

    In between transformers chooses by a prompt's length, and cupola, which says so in a note, by the context.
    """
    short, long = ([1.0 + step * i for i in range(num_factors)] for step in (0.1, 0.5))
    return _rope("longrope", short_factor=short, long_factor=long, original_max_position_embeddings=original, **more)


def _by_layer(full: Fields) -> Fields:
    """Other rotary embeddings in layers with a window than in those without."""
    return {"rope_parameters": {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}


ROUTERS: Mapping[str, Fields] = {
    "mixtral: one expert + a window": {"num_experts_per_tok": 1, "sliding_window": 8},
    "mixtral: every expert + tied": {"num_experts_per_tok": 4, "num_local_experts": 4, "tie_word_embeddings": True},
    "qwen2_moe: weights that sum to one + every other layer sparse": {**_FOUR, "norm_topk_prob": True, "decoder_sparse_step": 2},
    "qwen2_moe: weights as they are + first layer dense + no bias": {"norm_topk_prob": False, "mlp_only_layers": [0], "qkv_bias": False},
    "qwen3_moe: weights as they are + every other layer sparse + biases": {
        **_FOUR, "norm_topk_prob": False, "decoder_sparse_step": 2, "attention_bias": True},
    "qwen3_moe: weights that sum to one + a window": {"norm_topk_prob": True, "use_sliding_window": True, "sliding_window": 8},
    "olmoe: weights that sum to one + clipped projections": {"norm_topk_prob": True, "clip_qkv": 0.5, "attention_bias": True},
    "flex_olmo: weights that sum to one": {"norm_topk_prob": True},
    "deepseek_v2: the best groups + full queries": {**_GROUPS, "topk_method": "group_limited_greedy", "q_lora_rank": None},
    "deepseek_v2: two shared experts + scaled + biases": {"n_shared_experts": 2, "routed_scaling_factor": 2.0, "attention_bias": True},
    "deepseek_v3: groups + full queries": {**_GROUPS, "routed_scaling_factor": 1.5, "q_lora_rank": None},
    "deepseek_v3: weights as they are + halves rotated + two shared experts": {
        "norm_topk_prob": False, "rope_interleave": False, "n_shared_experts": 2},
    "deepseek_v3: all dense + yarn": {"first_k_dense_replace": 2, **_rope(
        "yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.7, **_LONG)},
    "glm4_moe: groups + norms of queries and keys": {**_GROUPS, "routed_scaling_factor": 2.5, "use_qk_norm": True},
    "glm4_moe: weights as they are + biases": {"norm_topk_prob": False, "attention_bias": True},
    "dots1: groups + weights that sum to one + biases": {**_GROUPS, "norm_topk_prob": True, "attention_bias": True},
    "ernie4_5_moe: biases + every other layer sparse": {**_FOUR, "use_bias": True, "moe_layer_interval": 2},
    "ernie4_5_moe: sparse layers end + no shared experts": {
        **_FOUR, "moe_layer_start_index": 1, "moe_layer_end_index": 2, "moe_num_shared_experts": 0},
    "gpt_oss: a tight limit + one expert + no bias": {"swiglu_limit": 0.5, "num_experts_per_tok": 1, "attention_bias": False},
    "gpt_oss: yarn": _rope("yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False, **_LONG),
    "granitemoe: multipliers + biases": {**_MULTIPLIERS, "attention_bias": True},
    "granitemoeshared: no shared expert": {"shared_intermediate_size": 0},
    "phimoe: biases + a window": {"attention_bias": True, "lm_head_bias": True, "sliding_window": 8},
    "minimax_m2: partial rope": _rope("default", partial_rotary_factor=0.5),
    "dbrx: weights as they are": {"ffn_config": {"hidden_size": 64, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2,
                                                 "moe_normalize_expert_weights": None}},
    "afmoe: two shared experts + scaled": {"num_shared_experts": 2, "route_scale": 2.5, "mup_enabled": True},
    "laguna: no gate + routers with a cap": {"gating": False, "moe_router_logit_softcapping": 2.0},
    "laguna: experts get weighted inputs": {"moe_apply_router_weight_on_input": True},
    "cohere2_moe: sigmoid + shared experts summed": {
        "expert_selection_fn": "sigmoid", "num_shared_experts": 2, "shared_expert_combination_strategy": "sum"},
    "exaone_moe: groups": {"num_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "solar_open: groups": _GROUPS,
    "hunyuan_v1_moe: biases": {"attention_bias": True},
    "longcat_flash: no zero experts": {"zero_expert_num": 0},
    "gemma4_text: experts": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "doge: experts": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
}  # fmt: skip

ROPE: Mapping[str, Fields] = {
    "llama: linear rope + tied": {**_rope("linear", factor=4.0), "tie_word_embeddings": True},
    "llama: dynamic rope + one key head": {**_rope("dynamic", factor=4.0), "num_key_value_heads": 1},
    "llama: yarn with its own factor + biases": {
        **_rope("yarn", factor=4.0, attention_factor=0.8, beta_fast=16.0, beta_slow=2.0, **_LONG), **_BIASES},
    "llama: longrope + a key head each": {**_longrope(8, 4, factor=4.0), "num_key_value_heads": 4},
    "llama: llama3 + wide heads": {"head_dim": 32, **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                          original_max_position_embeddings=32)},
    "llama: three heads + quick gelu": {"hidden_size": 60, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20,
                                       "hidden_act": "quick_gelu"},
    "phi3: longrope + a window": {**_longrope(8, 256), "original_max_position_embeddings": 256, "sliding_window": 8},
    "phi3: partial rope + tied": {**_rope("default", partial_rotary_factor=0.5), "tie_word_embeddings": True},
    "phi: whole rope + norms of each head": {**_rope("default", partial_rotary_factor=1.0), "qk_layernorm": True},
    "stablelm: whole rope + norms of each head + biases + parallel": {
        **_rope("default", partial_rotary_factor=1.0), "qk_layernorm": True, "use_qkv_bias": True, "use_parallel_residual": True},
    "gpt_neox: whole linear rope + one after the other + no bias": {
        **_rope("linear", factor=2.0, partial_rotary_factor=1.0), "use_parallel_residual": False, "attention_bias": False},
    "glm4: whole rope": _rope("default", partial_rotary_factor=1.0),
    "nemotron: a quarter rotated + biases": {**_rope("default", partial_rotary_factor=0.25), **_BIASES},
    "gptj: whole rope + tied": {"rotary_dim": None, "tie_word_embeddings": True},
    "gemma3_text: scaled rope beside local + caps": {
        **_by_layer({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}), "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 2.0},
    "gemma4_text: proportional rope + keys that are values": {
        **_by_layer({"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}), "attention_k_eq_v": True},
    "gemma4_text: shared keys": {"layer_types": ["sliding_attention", "full_attention"] * 2, **_FOUR, "num_kv_shared_layers": 2},
    "olmo3: yarn": _rope("yarn", factor=8.0, attention_factor=1.2, **_LONG),
    "qwen3: yarn + windows in later layers + biases": {**_rope("yarn", factor=4.0, **_LONG), "use_sliding_window": True,
                                                     "sliding_window": 8, "max_window_layers": 1, "attention_bias": True},
    "ministral3: a temperature by position": _rope("yarn", factor=4.0, llama_4_scaling_beta=0.1, mscale=1.0, mscale_all_dim=1.0,
                                                   original_max_position_embeddings=16),
    "exaone4: llama3 + a pattern of letters": {
        **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        **_FOUR, "sliding_window": 8, "sliding_window_pattern": "LLG", "layer_types": None},
    "hunyuan_v1_dense: rope by alpha": _rope("dynamic", factor=1.0, alpha=1000.0),
    "minicpm3: longrope + full queries + untied": {**_longrope(4, 4), "q_lora_rank": None, "tie_word_embeddings": False},
    "smollm3: layers without rope + windows elsewhere + untied": {
        **_FOUR, "no_rope_layers": [1, 0, 1, 0], "use_sliding_window": True, "sliding_window": 8, "layer_types": None,
        "tie_word_embeddings": False},
}  # fmt: skip

ATTENTION: Mapping[str, Fields] = {
    "qwen2: windows in later layers + tied": {
        "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True},
    "mistral: no window + tied": {"sliding_window": None, "tie_word_embeddings": True},
    "gemma2: no caps + windows in threes": {
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "gemma2: a tight cap + another scale": {"attn_logit_softcapping": 0.1, "query_pre_attn_scalar": 144},
    "gemma: untied + exact gelu": {"tie_word_embeddings": False, "hidden_act": "gelu"},
    "cohere: norms of queries and keys + biases + another logit scale": {
        "use_qk_norm": True, "attention_bias": True, "logit_scale": 1.5, "tie_word_embeddings": False},
    "persimmon: no norms": {"qk_layernorm": False},
    "gpt2: scale by layer + untied": {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False, "n_inner": 96},
    "gpt2: no scale + in float32 + relu": {"scale_attn_weights": False, "reorder_and_upcast_attn": True, "activation_function": "relu"},
    "gpt_bigcode: a key for each head": {"multi_query": False},
    "granite: multipliers + biases": {**_MULTIPLIERS, **_BIASES},
    "seed_oss: a bias of the output": {"attention_out_bias": True, "mlp_bias": True},
    "internlm3: biases": _BIASES,
    "ernie4_5: biases": {"use_bias": True},
    "starcoder2: no bias + a window + untied": {"use_bias": False, "sliding_window": 8, "tie_word_embeddings": False},
    "opt: norms behind + another embedding size": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "opt: no bias + norms without weights + gelu": {
        "enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu", "tie_word_embeddings": False},
    "olmo: clipped projections": {"clip_qkv": 0.5},
    "bloom: residuals behind the norm + six heads": {
        "apply_residual_connection_post_layernorm": True, "hidden_size": 96, "n_head": 6, "tie_word_embeddings": False},
    "mpt: clipped projections + own scale + steep slopes + six heads": {
        "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.5, "alibi_bias_max": 16}, "d_model": 96, "n_heads": 6},
    "falcon: new decoder with ALiBi": {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon: new decoder + one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon: one after the other + a key for each head + biases": {"parallel_attn": False, "multi_query": False, "bias": True},
    "modernbert-decoder: biases": {**_BIASES, "norm_bias": True},
    "mimo_v2_flash: another value scale": {"attention_value_scale": 2.0},
    "nanochat: no cap + tied": {"final_logit_softcapping": None, "tie_word_embeddings": True},
}  # fmt: skip

VARIANTS: Mapping[str, Fields] = {**ROUTERS, **ROPE, **ATTENTION}
