"""Gemma 4 as it is read from GGUF: full layers have wider heads than those with windows, and may have other K/V heads, and no values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cupola.compiler.sources.gguf_architecture import HEAD_NORMS, LLAMA, RMS, SANDWICH, Architecture, Bare, Names
from cupola.compiler.sources.gguf_facts import Facts, Rule, always, integer, optional_integer, optional_real, windows
from cupola.compiler.sources.gguf_mixtures import experts_of

_EXPERTS, _JOINED = experts_of("model.layers.{}")
_LAYER = "model.layers.{}"
_NAMES: Names = {
    **LLAMA, **SANDWICH, **HEAD_NORMS, **_EXPERTS, "layer_output_scale": Bare(f"{_LAYER}.layer_scalar"),
    "inp_gate": f"{_LAYER}.per_layer_input_gate", "proj": f"{_LAYER}.per_layer_projection",
    "post_norm": f"{_LAYER}.post_per_layer_input_norm", "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection", "per_layer_proj_norm": "model.per_layer_projection_norm",
    "pre_ffw_norm_2": f"{_LAYER}.pre_feedforward_layernorm_2", "post_ffw_norm_1": f"{_LAYER}.post_feedforward_layernorm_1",
    "post_ffw_norm_2": f"{_LAYER}.post_feedforward_layernorm_2", "ffn_gate_inp": f"{_LAYER}.router.proj",
    "ffn_gate_inp.scale": Bare(f"{_LAYER}.router.scale"), "ffn_down_exps.scale": Bare(f"{_LAYER}.router.per_expert_scale"),
}  # fmt: skip

_kinds = windows(6)


def _of_kind(facts: Facts, kind: str) -> list[int]:
    return [layer for layer, each in enumerate(_kinds(facts)) if each == kind]


def _kv_heads(kind: str) -> Rule:
    """The K/V heads of the first layer of a kind."""
    return lambda facts: next((facts.kv_heads[layer] for layer in _of_kind(facts, kind)), facts.num_kv_heads)


def _lacks_values(facts: Facts) -> bool:
    """True if full layers take keys for values."""
    own = facts.num_layers - facts.read.integer("attention.shared_kv_layers", 0)
    return any(f"blk.{layer}.attn_v.weight" not in facts.tensors for layer in _of_kind(facts, "full_attention") if layer < own)


def _head_of_windows(facts: Facts) -> int:
    size = facts.read.integer("attention.key_length_swa")
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if facts.read.integer(key, size) != size:
            facts.read.refuse(key, f"differs from the head size, {size}")
    return size


def _is_widened(facts: Facts) -> bool:
    """True if layers that share K and V have an MLP of twice the width."""
    narrow, shared = min(facts.widths, default=0), facts.read.integer("attention.shared_kv_layers", 0)
    own = facts.num_layers - shared
    wanted = tuple(narrow * (1 if layer < own else 2) for layer in range(facts.num_layers))
    if len(set(facts.widths)) > 1 and facts.widths != wanted:
        facts.read.refuse("feed_forward_length", "gives layers widths that are not Gemma 4's")
    return len(set(facts.widths)) > 1


def _rope(facts: Facts) -> dict[str, Any]:
    """By kind of layer; of full ones the file says by factors which pairs turn: 1 for those, and a huge one for the others."""
    theta, local = facts.read.real("rope.freq_base", 1e6), facts.read.real("rope.freq_base_swa", 1e4)
    factors = facts.values_of("rope_freqs.weight") if "rope_freqs.weight" in facts.tensors else np.ones(facts.head_dim // 2)
    num_turned = int((factors == 1).sum())
    if len(factors) != facts.head_dim // 2 or not ((factors[:num_turned] == 1).all() and (factors[num_turned:] > 1e20).all()):
        facts.read.refuse("rope.dimension_count", "comes with rope_freqs.weight of a kind that is not Gemma 4's")
    full = {"rope_type": "proportional", "partial_rotary_factor": num_turned / len(factors), "rope_theta": theta}
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": local}}


GEMMA4: Mapping[str, Architecture] = {
    "gemma4": Architecture(
        "gemma4_text", "Gemma4ForCausalLM", _NAMES,
        {**RMS, "hidden_activation": always("gelu_pytorch_tanh"), "layer_types": _kinds, "rope_parameters": _rope,
         "sliding_window": integer("attention.sliding_window"), "head_dim": _head_of_windows,
         "global_head_dim": lambda facts: facts.head_dim, "num_key_value_heads": _kv_heads("sliding_attention"),
         "num_global_key_value_heads": _kv_heads("full_attention"), "attention_k_eq_v": _lacks_values,
         "num_kv_shared_layers": integer("attention.shared_kv_layers", 0),
         # None if the key is absent, as in the checkpoint then; llama.cpp takes 30.
         "final_logit_softcapping": optional_real("final_logit_softcapping"),
         "hidden_size_per_layer_input": integer("embedding_length_per_layer_input", 0),
         "vocab_size_per_layer_input": lambda facts: facts.rows_of("per_layer_token_embd.weight"),
         "intermediate_size": lambda facts: min(facts.widths, default=0), "use_double_wide_mlp": _is_widened,
         "enable_moe_block": lambda facts: bool(facts.read.integer("expert_count", 0)),
         "num_experts": optional_integer("expert_count"), "top_k_experts": optional_integer("expert_used_count"),
         "moe_intermediate_size": optional_integer("expert_feed_forward_length")},
        joins=_JOINED, is_rotary=False,
    ),
}  # fmt: skip
