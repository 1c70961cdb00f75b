"""The architectures with experts that are read: transformers rebuilds each with the same logits, and experts keep their blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from cupola.compiler.sources import open_source
from cupola.runtime.errors import SourceError, UnsupportedError
from tests.compiler.sources.gguf_files import (
    FACTORS,
    GRANITE,
    HALF,
    Case,
    Tensors,
    Values,
    Writer,
    assert_rebuilt,
    half,
    keep,
    longrope,
    rotated,
    scales,
    tiny,
    window,
    write,
)

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def halves(name: str, values: Values, config: Any) -> Tensors:
    """Gates and ups, which checkpoints have apart, as the converter stacks them."""
    if ".experts." not in name:
        return {name: values}
    if not name.endswith("gate_up_proj"):
        return {f"{name}.weight": values}
    gate, up = np.split(values, 2, axis=1)
    return {name.replace("gate_up_proj", "gate_proj.weight"): gate, name.replace("gate_up_proj", "up_proj.weight"): up}


def in_turns(name: str, values: Values, config: Any) -> Tensors:
    """`GptOssModel`: matrices lie turned, gates and ups in turns, and so their biases."""
    if name.endswith("sinks"):
        return {f"{name}.weight": values}
    if ".experts." not in name:
        return {name: values}
    module, _, end = name.rpartition(".")
    turned, kind = (values, "bias") if end.endswith("_bias") else (values.swapaxes(1, 2), "weight")
    if end.startswith("down"):
        return {f"{module}.down_proj.{kind}": turned}
    return {f"{module}.gate_proj.{kind}": turned[:, ::2], f"{module}.up_proj.{kind}": turned[:, 1::2]}


def widths(writer: Writer, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if hasattr(config, "shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def gpt_oss(writer: Writer, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(config.rope_parameters["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(config.rope_parameters["beta_slow"])


YARN = {
    "rope_type": "yarn", "rope_theta": 50000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2, "first_k_dense_replace": 1}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    **ROUTED, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_rope_head_dim": 16, "qk_nope_head_dim": 8, "v_head_dim": 24,
    "num_key_value_heads": 4, "routed_scaling_factor": 1.5,
}  # fmt: skip
DEEPSEEK_YARN = {
    "rope_type": "yarn", "rope_theta": 50000.0, "factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.707,
    "mscale_all_dim": 0.707,     "original_max_position_embeddings": 4096,
}  # fmt: skip
DEEPSEEK3_YARN = {**DEEPSEEK_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 50000.0, "original_max_position_embeddings": 64, "short_mscale": 1.243163121016122,
    "long_mscale": 1.243163121016122, **FACTORS,
}  # fmt: skip


def routed(writer: Writer, config: Any) -> None:
    """As the converters of DeepSeek's relatives write them."""
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    if config.n_group is not None:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    softmax = config.model_type == "deepseek_v2"
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX if softmax else gguf.ExpertGatingFuncType.SIGMOID)


def glm(writer: Writer, config: Any) -> None:
    routed(writer, config)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads // 2)


def deepseek(writer: Writer, config: Any) -> None:
    """`DeepseekV2Model`, since it keeps the latent vector."""
    routed(writer, config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_vocab_size(config.vocab_size)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    if config.rope_parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * config.rope_parameters["mscale_all_dim"])


def latent(name: str, values: Values, config: Any) -> Tensors:
    """kv_b in two, what makes keys turned."""
    if not name.endswith("kv_b_proj.weight"):
        return scored(name, values, config)
    by_head = values.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
    keys, made = np.split(by_head, [config.qk_nope_head_dim], axis=1)
    return {name.replace("kv_b_proj", "k_b_proj"): keys.swapaxes(1, 2), name.replace("kv_b_proj", "v_b_proj"): made}


def scored(name: str, values: Values, config: Any) -> Tensors:
    """The bias of an expert's score, which the name map knows by another name."""
    if name.endswith("mlp.e_score_correction_bias"):
        name = name.replace("mlp.", "block_sparse_moe.")
    name = name.replace("gate.moe_statics", "moe_statics")  # as checkpoints have it
    found = halves(name.replace("e_score_correction_bias", "e_score_correction.bias"), values, config)
    return {each: part.squeeze(0) if "statics" in each else part for each, part in found.items()}


def shared(name: str, values: Values, config: Any) -> Tensors:
    """`GraniteMoeModel`: gates and ups of the shared expert too."""
    layer = name.split(".")[2] if ".layers." in name else ""
    if ".experts." in name:
        found = halves(name, values, config)
        return {f"blk.{layer}.ffn_{each.split('.')[-2].removesuffix('_proj')}_exps.weight": part for each, part in found.items()}
    if not name.endswith("shared_mlp.input_linear.weight"):
        return {name.replace("router.weight", "router.layer.weight"): values}  # as checkpoints have it
    gate, up = np.split(values, 2)
    return {f"model.layers.{layer}.mlp.shared_expert.gate_proj.weight": gate, f"model.layers.{layer}.mlp.shared_expert.up_proj.weight": up}


def granite(writer: Writer, config: Any) -> None:
    scales(writer, config)
    if hasattr(config, "shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def ernie(writer: Writer, config: Any) -> None:
    writer.add_expert_count(config.moe_num_experts)
    writer.add_expert_used_count(config.moe_k)
    writer.add_interleave_moe_layer_step(config.moe_layer_interval)
    writer.add_leading_dense_block_count(config.moe_layer_start_index)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.moe_num_shared_experts)
    writer.add_expert_shared_feed_forward_length(config.intermediate_size // config.num_key_value_heads)


def hunyuan(writer: Writer, config: Any) -> None:
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.intermediate_size)
    writer.add_expert_shared_count(1)


def minimax(writer: Writer, config: Any) -> None:
    half(writer, config)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_feed_forward_length(config.intermediate_size)


MIXTURES = {
    "qwen2moe": Case("qwen2moe", "qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48}, keep, widths, halves),
    "qwen3moe": Case("qwen3moe", "qwen3_moe", {**EXPERTS, "norm_topk_prob": True}, keep, widths, halves),
    "gpt-oss": Case(
        "gpt-oss", "gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "rope_parameters": YARN},
        keep, gpt_oss, in_turns,
    ),
    "mixtral": Case("llama", "mixtral", {**LOCAL, "sliding_window": None}, rotated, split=halves),
    "olmoe": Case("olmoe", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.9}, keep,
                  lambda writer, config: writer.add_clamp_kqv(config.clip_qkv), halves),
    "granitemoe": Case("granitemoe", "granitemoe", {**GRANITE, **LOCAL}, rotated, granite, shared),
    "granitemoe shared": Case(
        "granitemoe", "granitemoeshared", {**GRANITE, **LOCAL, "shared_intermediate_size": 48}, rotated, granite, shared
    ),
    "glm4moe": Case("glm4moe", "glm4_moe", {**HALF, **ROUTED, "attention_bias": True, "use_qk_norm": True}, keep, glm, scored),
    "glm4moe without norms": Case("glm4moe", "glm4_moe", {**HALF, **ROUTED, "norm_topk_prob": True}, keep, glm, scored),
    "dots1": Case("dots1", "dots1", {**ROUTED, "norm_topk_prob": True}, keep, routed, scored),
    "deepseek2": Case(
        "deepseek2", "deepseek_v2", {**LATENT, "topk_method": "greedy", "rope_parameters": DEEPSEEK_YARN}, keep, deepseek, latent, False
    ),
    "deepseek2 lite": Case("deepseek2", "deepseek_v2", {**LATENT, "q_lora_rank": None}, keep, deepseek, latent, False),
    "deepseek3": Case(
        "deepseek2", "deepseek_v3",
        {**LATENT, "n_group": 2, "topk_group": 1, "norm_topk_prob": True, "rope_parameters": DEEPSEEK3_YARN},
        keep, deepseek, latent, False,
    ),
    "phimoe": Case("phimoe", "phimoe", {**LOCAL, "attention_bias": True, "lm_head_bias": True}, keep, window, halves),
    "phimoe longrope": Case("phimoe", "phimoe", {**LOCAL, "rope_parameters": LONGROPE}, keep, longrope, halves),
    "ernie4_5-moe": Case(
        "ernie4_5-moe", "ernie4_5_moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1, "moe_num_shared_experts": 2},
        keep, ernie, scored,
    ),
    "hunyuan-moe": Case("hunyuan-moe", "hunyuan_v1_moe", {"num_experts": 4, "moe_topk": 2}, keep, hunyuan, halves),
    "minimax-m2": Case("minimax-m2", "minimax_m2", {**HALF, **LOCAL}, keep, minimax, scored),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_transformers_rebuilds_the_model(name: str, tmp_path: Path) -> None:
    assert_rebuilt(MIXTURES[name], tmp_path / "tiny.gguf")


def gate_above_up(tensors: Tensors) -> Tensors:
    """As `convert_hf_to_gguf.py --fuse-gate-up-exps` writes them."""
    gates = [name for name in tensors if "ffn_gate_exps" in name]
    ups = {name: tensors.pop(name.replace("gate", "up")) for name in gates}
    return tensors | {name.replace("gate", "gate_up"): np.concatenate((tensors.pop(name), ups[name]), axis=1) for name in gates}


def one_by_one(tensors: Tensors) -> Tensors:
    """As files of 2023 have them."""
    single = {}
    for name, values in tensors.items():
        stacks = {name.replace("_exps", f".{number}"): each for number, each in enumerate(values)}
        single |= stacks if "_exps" in name else {name: values}
    return single


@pytest.mark.parametrize("form", [gate_above_up, one_by_one])
@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss"])
def test_experts_are_the_same_in_every_form(name: str, form: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    case, model = MIXTURES[name], tiny(MIXTURES[name])
    usual, other = (open_source(write(tmp_path / f"{number}.gguf", case, model, drop=each)) for number, each in enumerate((dict, form)))
    assert usual.tensors.keys() == other.tensors.keys() and usual.config == other.config
    for tensor, same in zip(usual.tensors.values(), (other.tensors[name] for name in usual.tensors), strict=True):
        np.testing.assert_array_equal(tensor.load(), same.load())


@pytest.mark.parametrize(("name", "kind"), [("qwen3moe", Kind.Q4_0), ("gpt-oss", Kind.MXFP4)])
def test_experts_keep_their_blocks(name: str, kind: Kind, tmp_path: Path) -> None:
    """Of every matrix, in the order of the model's rows."""
    case, model = MIXTURES[name], tiny(MIXTURES[name])
    ends = ("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
    path = write(tmp_path / "tiny.gguf", case, model, ends, kind)
    source, rounded = open_source(path), {info.name: gguf.dequantize(info.data, info.tensor_type) for info in gguf.GGUFReader(path).tensors}
    assert source.notes[:-1] == ()
    for layer in range(3):
        gate, up, down = (rounded[f"blk.{layer}.{end}"] for end in ends)
        rows = np.stack((gate, up), axis=2).reshape(4, -1, 64) if name == "gpt-oss" else np.concatenate((gate, up), axis=1)
        for end, expected in (("gate_up_proj", rows), ("down_proj", down)):
            tensor = source.tensors[f"model.layers.{layer}.mlp.experts.{end}"]
            assert tensor.blocks is not None and tensor.stored_as == kind.name and tensor.is_turned == (name == "gpt-oss")
            np.testing.assert_array_equal(tensor.load(), expected.swapaxes(1, 2) if tensor.is_turned else expected)
            np.testing.assert_array_equal(tensor.blocks().values(), expected.reshape(-1, expected.shape[2]))


def test_gates_and_ups_of_two_types_become_floats(tmp_path: Path) -> None:
    case, model = MIXTURES["qwen3moe"], tiny(MIXTURES["qwen3moe"])
    source = open_source(write(tmp_path / "tiny.gguf", case, model, ("ffn_up_exps.weight",)))
    tensor = source.tensors["model.layers.0.mlp.experts.gate_up_proj"]
    assert tensor.blocks is None and tensor.format is None and tensor.stored_as == ""
    np.testing.assert_allclose(tensor.load(), model.model.layers[0].mlp.experts.gate_up_proj.detach().numpy(), atol=1e-2)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (lambda tensors: without(tensors, "blk.1.ffn_up_exps.weight"), r"blk\.1\.ffn_up_exps\.weight: is missing"),
        (lambda tensors: without(one_by_one(tensors), "blk.1.ffn_up.2.weight"), r"blk\.1\.ffn_up\.2\.weight: is missing"),
        (
            lambda tensors: {**tensors, "blk.1.ffn_up_exps.weight": np.zeros((3, 32, 64), "f")},
            r"blk\.1\.ffn_gate_exps\.weight: does not fit its neighbour: \[4, 32, 64\] and \[3, 32, 64\]",
        ),
        (
            lambda tensors: {**tensors, "blk.1.ffn_gate_up_exps.weight": np.zeros((4, 64, 64), "f")},
            r"blk\.1\.ffn_gate_up_exps\.weight: is there twice: as it is, and as ffn_gate_exps and ffn_up_exps",
        ),
        (
            lambda tensors: {**one_by_one(tensors), "blk.1.ffn_up.2.weight": np.zeros((16, 64), "f")},
            r"blk\.1\.ffn_up\.2\.weight: has the shape \[16, 64\], where the others have \[32, 64\]",
        ),
    ],
)
def test_damaged_experts_are_refused_by_name(drop: Callable[[Tensors], Tensors], message: str, tmp_path: Path) -> None:
    case = MIXTURES["qwen3moe"]
    with pytest.raises(SourceError, match=message):
        open_source(write(tmp_path / "tiny.gguf", case, tiny(case), drop=drop))


def without(tensors: Tensors, name: str) -> Tensors:
    return {each: values for each, values in tensors.items() if each != name}


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    case = MIXTURES["glm4moe"]
    more = {"blk.3.nextn.eh_proj.weight": np.zeros((64, 128), "f"), "blk.3.attn_q.weight": np.zeros((64, 64), "f")}

    def fields(writer: Writer, config: Any) -> None:
        case.fields(writer, config)
        writer.add_block_count(4)
        writer.add_nextn_predict_layers(1)

    plain, longer = (
        open_source(write(tmp_path / f"{number}.gguf", each, tiny(case), drop=lambda tensors: tensors | extra))
        for number, (each, extra) in enumerate(((case, {}), (replace(case, fields=fields), more)))
    )
    assert plain.tensors.keys() == longer.tensors.keys() and plain.config == longer.config
    assert longer.notes == ("the layers that predict further tokens are left out", *plain.notes)


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("qwen3moe", "blk.0.ffn_down_exps.scale", r"blk\.0\.ffn_down_exps\.scale: is a part that Qwen3MoeForCausalLM does not have here"),
        ("qwen3moe", "blk.0.ffn_down_exps.bias", r"down_proj_bias"),
        ("deepseek2", "blk.0.attn_kv_b.weight", r"blk\.0\.attn_kv_b\.weight: is there twice: as it is, and as attn_k_b and attn_v_b"),
    ],
)
def test_what_has_no_place_is_told(name: str, extra: str, message: str, tmp_path: Path) -> None:
    case = MIXTURES[name]
    path = write(tmp_path / "tiny.gguf", case, tiny(case), drop=lambda tensors: {**tensors, extra: np.zeros((4, 64), "f")})
    if "bias" not in extra:
        with pytest.raises((SourceError, UnsupportedError), match=message):
            open_source(path)
    else:
        assert "model.layers.0.mlp.experts.down_proj_bias" in open_source(path).tensors  # which binding tells as unused


def test_routing_that_the_class_does_not_do_is_refused(tmp_path: Path) -> None:
    case = MIXTURES["glm4moe"]

    def fields(writer: Writer, config: Any) -> None:
        case.fields(writer, config)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)

    with pytest.raises(UnsupportedError, match=r"expert_gating_func: is 1, and Glm4MoeForCausalLM does what 2 says"):
        open_source(write(tmp_path / "tiny.gguf", replace(case, fields=fields), tiny(case)))


def test_old_files_have_what_makes_keys_and_values_as_one(tmp_path: Path) -> None:
    """As the converter wrote DeepSeek's files until 2025; their keys and values have the sizes of heads."""
    case = MIXTURES["deepseek2 lite"]

    def fields(writer: Writer, config: Any) -> None:
        case.fields(writer, config)
        writer.add_key_length(config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_value_length(config.v_head_dim)
        writer.add_head_count_kv(config.num_attention_heads)

    def one(name: str, values: Values, config: Any) -> Tensors:
        return scored(name, values, config)

    new, old = (
        open_source(write(tmp_path / f"{number}.gguf", each, tiny(case)))
        for number, each in enumerate((case, replace(case, fields=fields, split=one)))
    )
    for name, tensor in new.tensors.items():
        np.testing.assert_array_equal(tensor.load(), old.tensors[name].load())
