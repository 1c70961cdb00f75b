"""The architectures with recurrent layers that are read: transformers rebuilds each with the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.compiler.sources.gguf_files import (
    GRANITE,
    SIZES,
    THETA,
    Case,
    Tensors,
    Values,
    Writer,
    assert_rebuilt,
    keep,
    rotated,
    scales,
)
from tests.compiler.sources.test_gguf_mixtures import halves

TOKENS = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MAMBA = {"state_size": 8, "time_step_rank": 4, "intermediate_size": 128}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2, "mamba_chunk_size": 8}
DELTA = {
    "linear_key_head_dim": 16, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.25},
}  # fmt: skip


def layer_of(name: str) -> str:
    return name.split(".")[2] if ".layers." in name else ""


def as_stored(name: str, values: Values, config: Any) -> Tensors:
    """As every converter of states: A for its logarithm, kernels without their middle axis, and a bias that has another name."""
    if name.endswith("A_log"):
        values = -np.exp(values)
    if name.endswith(("conv1d.weight", "conv.conv.weight")):
        values = values.squeeze(1)
    if name.endswith(".dt_bias"):
        name = f"{name.removesuffix('.dt_bias')}.dt_proj.bias"
    if name.endswith("shared_expert_gate.weight"):
        values = values.squeeze(0)
    return {name: values}


def mamba2(name: str, values: Values, config: Any) -> Tensors:
    """`Mamba2Model`: A and D get an axis, the norm one of groups."""
    ((name, values),) = as_stored(name, values, config).items()
    if name.endswith((".A_log", ".D")):
        return {name: values.reshape(-1, 1)}
    if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        groups = next(getattr(config, each) for each in ("n_groups", "mamba_n_groups") if hasattr(config, each))
        return {name: values.reshape(groups, -1)}
    return {name: values}


def mamba_fields(writer: Writer, config: Any) -> None:
    writer.add_context_length(2**20)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_state_size(config.state_size)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    if config.model_type == "mamba2":
        writer.add_ssm_inner_size(config.num_heads * config.head_dim)
        writer.add_ssm_time_step_rank(config.num_heads)
        writer.add_ssm_group_count(config.n_groups)
    else:
        writer.add_ssm_inner_size(config.intermediate_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
        writer.add_ssm_dt_b_c_rms(config.model_type == "falcon_mamba")


def prefixed(writer: Writer, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_group_count(config.mamba_n_groups)
    writer.add_ssm_inner_size(config.mamba_n_heads * config.mamba_d_head)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)


def kv_heads(writer: Writer, config: Any, kinds: list[str], attention: tuple[str, ...] = ("full_attention", "attention")) -> None:
    writer.add_head_count_kv([config.num_key_value_heads if kind in attention else 0 for kind in kinds])


def granite(writer: Writer, config: Any) -> None:
    """`GraniteHybridModel`, as Granite 4 has no rotary embeddings in models with states."""
    scales(writer, config)
    prefixed(writer, config)
    kv_heads(writer, config, config.layer_types)
    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")
    if config.num_local_experts:
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    else:
        writer.add_feed_forward_length(config.shared_intermediate_size)


def granite_tensors(name: str, values: Values, config: Any) -> Tensors:
    layer = layer_of(name)
    if "shared_mlp" in name:
        suffix = "_shexp" if config.num_local_experts else ""
        if "output_linear" in name:
            return {f"blk.{layer}.ffn_down{suffix}.weight": values}
        gate, up = np.split(values, 2)
        return {f"blk.{layer}.ffn_gate{suffix}.weight": gate, f"blk.{layer}.ffn_up{suffix}.weight": up}
    if ".experts." in name:
        if name.endswith("down_proj"):
            return {f"blk.{layer}.ffn_down_exps.weight": values}
        gate, up = np.split(values, 2, axis=1)
        return {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
    return mamba2(name.replace("router.weight", "router.layer.weight"), values, config)


def jamba(writer: Writer, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_time_step_rank(config.mamba_dt_rank)
    kv_heads(writer, config, config.layers_block_type)


def jamba_tensors(name: str, values: Values, config: Any) -> Tensors:
    ((name, values),) = as_stored(name, values, config).items()
    return halves(name.replace("feed_forward.experts", "mlp.experts"), values, config)


MULTIPLIERS = {
    "lm_head_multiplier": 0.7, "embedding_multiplier": 1.3, "mlp_multipliers": [0.8, 1.2], "key_multiplier": 0.9,
    "attention_in_multiplier": 1.1, "attention_out_multiplier": 0.6, "ssm_multipliers": [0.5, 1.5, 0.7, 1.2, 0.9],
    "ssm_in_multiplier": 0.85, "ssm_out_multiplier": 1.25,
}  # fmt: skip


def falcon_h1(writer: Writer, config: Any) -> None:
    prefixed(writer, config)
    writer.add_vocab_size(config.vocab_size)


def falcon_h1_tensors(name: str, values: Values, config: Any) -> Tensors:
    """`FalconH1Model`: weights are multiplied by what the model multiplies values by."""
    inner, state = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
    parts = np.repeat(config.ssm_multipliers, [inner, inner, state, state, config.mamba_n_heads])
    factors = {
        "down_proj.weight": config.mlp_multipliers[1], "gate_proj.weight": config.mlp_multipliers[0],
        "k_proj.weight": config.key_multiplier * config.attention_in_multiplier, "q_proj.weight": config.attention_in_multiplier,
        "v_proj.weight": config.attention_in_multiplier, "o_proj.weight": config.attention_out_multiplier,
        "out_proj.weight": config.ssm_out_multiplier, "in_proj.weight": config.ssm_in_multiplier * parts[:, None],
        "lm_head.weight": config.lm_head_multiplier, "embed_tokens.weight": config.embedding_multiplier,
    }  # fmt: skip
    factor = next((factor for end, factor in factors.items() if name.endswith(f".{end}") or name == end), 1.0)
    return mamba2(name, values * factor, config)


def nemotron_h(writer: Writer, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_state_size(config.ssm_state_size)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_ssm_inner_size(config.mamba_num_heads * config.mamba_head_dim)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    kv_heads(writer, config, config.layers_block_type)
    writer.add_feed_forward_length([config.intermediate_size if kind == "mlp" else 0 for kind in config.layers_block_type])


def nemotron_h_tensors(name: str, values: Values, config: Any) -> Tensors:
    """Names as checkpoints have them."""
    return mamba2(name.replace("model.", "backbone."), values, config)


def lfm2(writer: Writer, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    kv_heads(writer, config, config.layer_types)
    if config.model_type == "lfm2_moe":
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_leading_dense_block_count(config.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def lfm2_tensors(name: str, values: Values, config: Any) -> Tensors:
    ((name, values),) = as_stored(name.replace(".expert_bias", ".expert_bias.bias"), values, config).items()
    if "feed_forward.experts" not in name:
        return {name: values}
    shorter = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    found = halves(name.removeprefix("model."), values, config)
    return {each.replace(long, short): part for each, part in found.items() for long, short in shorter.items() if long in each}


def delta(writer: Writer, config: Any) -> None:
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(4)
    writer.add_rope_dimension_count(config.head_dim // 4)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if config.model_type.startswith("qwen3_5"):
        writer.add_rope_dimension_sections([11, 11, 10, 0])


def offset(name: str, values: Values, config: Any) -> Values:
    """Norms hold 1 more, but that of linear attention."""
    return values + 1 if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight") else values


def qwen3_next(name: str, values: Values, config: Any) -> Tensors:
    """`Qwen3NextModel`: q, k, v and z of each head of keys are put together by their kind."""
    if "in_proj_qkvz" not in name:
        ((name, values),) = as_stored(name, values, config).items()
        return halves(name, values, config)
    group = config.linear_num_value_heads // config.linear_num_key_heads * config.linear_value_head_dim
    by_head = values.reshape(config.linear_num_key_heads, -1, config.hidden_size)
    key = config.linear_key_head_dim
    parts = [part.reshape(-1, config.hidden_size) for part in np.split(by_head, [key, 2 * key, 2 * key + group], axis=1)]
    layer = layer_of(name)
    return {f"blk.{layer}.attn_qkv.weight": np.concatenate(parts[:3]), f"blk.{layer}.attn_gate.weight": parts[3]}


def in_tiles(values: Values, axis: int, config: Any, size: int) -> Values:
    """`_reorder_v_heads`."""
    keys, heads = config.linear_num_key_heads, config.linear_num_value_heads
    shape = values.shape
    split = (*shape[:axis], keys, heads // keys, size, *shape[axis + 1 :])
    return values.reshape(split).swapaxes(axis, axis + 1).reshape(shape)


def qwen35(name: str, values: Values, config: Any) -> Tensors:
    """`_LinearAttentionVReorderBase`: heads of values lie by their place in a group."""
    ((stored, values),) = as_stored(name, values, config).items()
    if ".linear_attn." in name:
        size, before = config.linear_value_head_dim, 2 * config.linear_num_key_heads * config.linear_key_head_dim
        if "in_proj_qkv" in name or "conv1d" in name:
            values = np.concatenate((values[:before], in_tiles(values[before:], 0, config, size)))
        elif "in_proj_z" in name:
            values = in_tiles(values, 0, config, size)
        elif name.endswith((".in_proj_a.weight", ".in_proj_b.weight", ".A_log", ".dt_bias")):
            values = in_tiles(values, 0, config, 1)
        elif "out_proj" in name:
            values = in_tiles(values, 1, config, size)
    layer = layer_of(name)
    direct = {"in_proj_qkv.weight": "attn_qkv", "in_proj_z.weight": "attn_gate"}
    part = next((part for end, part in direct.items() if name.endswith(end)), None)
    return {f"blk.{layer}.{part}.weight": values} if part else halves(stored, values, config)


WITHOUT = {name: value for name, value in {**SIZES, **THETA}.items() if name != "head_dim"}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MOE_DELTA = {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 48}
KINDS = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
CONVS = {"layer_types": ["conv", "full_attention", "conv"]}
RECURRENT = {
    "mamba": Case("mamba", "mamba", MAMBA, keep, mamba_fields, as_stored, False, TOKENS),
    "falcon mamba": Case("mamba", "falcon_mamba", MAMBA, keep, mamba_fields, as_stored, False, TOKENS),
    "mamba2": Case(
        "mamba2", "mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 8}, keep, mamba_fields, mamba2,
        False, TOKENS,
    ),
    "granitehybrid": Case(
        "granitehybrid", "granitemoehybrid",
        {**GRANITE, **MAMBA2, **KINDS, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48,
         "position_embedding_type": None}, rotated, granite, granite_tensors,
    ),
    "granitehybrid experts": Case(
        "granitehybrid", "granitemoehybrid",
        {**GRANITE, **MAMBA2, **KINDS, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 48,
         "position_embedding_type": "rope"}, rotated, granite, granite_tensors,
    ),
    "jamba": Case(
        "jamba", "jamba",
        {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_hidden_layers": 4, "attn_layer_period": 3,
         "attn_layer_offset": 0}, keep, jamba, jamba_tensors, sizes=WITHOUT,
    ),
    "falcon-h1": Case(
        "falcon-h1", "falcon_h1",
        {**MAMBA2, "mamba_d_ssm": 128, "mamba_norm_before_gate": False, "mamba_rms_norm": True, **MULTIPLIERS}, keep, falcon_h1,
        falcon_h1_tensors,
    ),
    "nemotron_h": Case(
        "nemotron_h", "nemotron_h",
        {"layers_block_type": ["linear_attention", "full_attention", "mlp"], "ssm_state_size": 16, "mamba_num_heads": 8,
         "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 8, "n_routed_experts": 0,
         "num_experts_per_tok": 0}, keep, nemotron_h, nemotron_h_tensors,
    ),
    "lfm2": Case("lfm2", "lfm2", {**CONVS, "block_auto_adjust_ff_dim": False}, keep, lfm2, lfm2_tensors, sizes=WITHOUT),
    "lfm2moe": Case("lfm2moe", "lfm2_moe", {**CONVS, **EXPERTS, "num_dense_layers": 1}, keep, lfm2, lfm2_tensors, sizes=WITHOUT),
    "qwen3next": Case("qwen3next", "qwen3_next", MOE_DELTA, offset, delta, qwen3_next),
    "qwen35": Case("qwen35", "qwen3_5_text", DELTA, offset, delta, qwen35),
    "qwen35moe": Case("qwen35moe", "qwen3_5_moe_text", MOE_DELTA, offset, delta, qwen35),
}  # fmt: skip


@pytest.mark.parametrize("name", RECURRENT)
def test_transformers_rebuilds_the_model(name: str, tmp_path: Path) -> None:
    assert_rebuilt(RECURRENT[name], tmp_path / "tiny.gguf")
