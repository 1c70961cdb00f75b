"""The architectures with recurrent layers that are read from GGUF: a table of data, a line or a few for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cupola.compiler.sources.gguf_architecture import (
    ATTENTION,
    FFN_NORM,
    GATED,
    HEAD_NORMS,
    QKV_BIAS,
    QKVO,
    ROTATED,
    SCALES,
    SILU,
    TOP,
    Architecture,
    Bare,
    Join,
    Names,
)  # fmt: skip
from cupola.compiler.sources.gguf_facts import Facts, Rule, always, has, integer, real, stated
from cupola.compiler.sources.gguf_mixtures import EXPERTS, JOINED, QWEN, ROUTER, SHARED_EXPERT, experts_of

_EPSILON = real("attention.layer_norm_rms_epsilon")
_NOPE_CONTEXT = 131072  # what Granite 4 was made for; of models without rotary embeddings the converter writes a million


def _mamba(module: str) -> Names:
    """The names of both kinds of Mamba's layers."""
    return {
        "ssm_in": f"{module}.in_proj", "ssm_conv1d": f"{module}.conv1d", "ssm_x": f"{module}.x_proj", "ssm_out": f"{module}.out_proj",
        "ssm_a": Bare(f"{module}.A_log"), "ssm_d": Bare(f"{module}.D"),
    }  # fmt: skip


def _mamba2(module: str) -> Names:
    return {name: target for name, target in _mamba(module).items() if name != "ssm_x"} | {
        "ssm_dt": Bare(f"{module}.dt"), "ssm_norm": f"{module}.norm",
    }  # fmt: skip


_KERNEL: Mapping[str, tuple[str, ...]] = {"ssm_conv1d.weight": ("kernel",)}
_MAMBA = {**_KERNEL, "ssm_a": ("log",)}
_MAMBA2 = {**_KERNEL, "ssm_a": ("log", "flat"), "ssm_d": ("flat",), "ssm_norm.weight": ("flat",)}
_BACKBONE: Names = {
    "token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head", "attn_norm": "backbone.layers.{}.norm",
}  # fmt: skip
_NO_ROPE: Mapping[str, tuple[object, ...]] = {"rope.freq_base": (), "rope.dimension_count": ()}
_NO_HEADS = {"num_attention_heads": None, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": None}


def _head_size(facts: Facts) -> int:
    """Of Mamba-2."""
    return facts.read.integer("ssm.inner_size") // max(facts.read.integer("ssm.time_step_rank"), 1)


def _expand(facts: Facts) -> int:
    return facts.read.integer("ssm.inner_size") // facts.hidden_size


_BIASES: Mapping[str, Rule] = {"use_bias": has("blk.0.ssm_in.bias"), "use_conv_bias": has("blk.0.ssm_conv1d.bias")}
_MAMBA_SIZES: Mapping[str, Rule] = {
    **_BIASES, "layer_norm_epsilon": _EPSILON, "state_size": integer("ssm.state_size"), "conv_kernel": integer("ssm.conv_kernel"),
    "expand": _expand,
}  # fmt: skip
_MAMBA1_SIZES: Mapping[str, Rule] = {
    **_MAMBA_SIZES, "time_step_rank": integer("ssm.time_step_rank"), "intermediate_size": integer("ssm.inner_size"),
}  # fmt: skip


def _kinds(state: str) -> Rule:
    """`layer_types`: a layer without K/V heads is one with a state."""
    return lambda facts: ["full_attention" if heads else state for heads in facts.kv_heads]


def _prefixed(prefix: str) -> Mapping[str, Rule]:
    """The sizes of Mamba-2's layers in models that have others too."""
    some = "blk.{}.ssm_{}.bias"

    def any_has(part: str) -> Rule:
        return lambda facts: any(some.format(layer, part) in facts.tensors for layer in range(facts.num_layers))

    sizes = {
        "n_heads": integer("ssm.time_step_rank"), "d_head": _head_size, "n_groups": integer("ssm.group_count"),
        "d_state": integer("ssm.state_size"), "d_conv": integer("ssm.conv_kernel"), "conv_bias": any_has("conv1d"),
        "proj_bias": any_has("in"),
    }  # fmt: skip
    return {f"{prefix}_{name}": rule for name, rule in sizes.items()}


_GRANITE_NAMES: Names = {**TOP, **ATTENTION, **FFN_NORM, **_mamba2("model.layers.{}.mamba")}
_GRANITE_EXPERTS, _GRANITE_JOINED = experts_of("model.layers.{}.block_sparse_moe")


def _granite(names: Names, gate: str, up: str, width: Rule, joins: Mapping[str, Join]) -> Architecture:
    """Granite 4 with experts or without; the MLP of all tokens has names of its own in either case."""
    return Architecture(
        "granitemoehybrid", "GraniteMoeHybridForCausalLM", {**_GRANITE_NAMES, **names},
        {**SILU, **QKV_BIAS, **SCALES, **_prefixed("mamba"), "attention_multiplier": real("attention.scale"), "mamba_expand": _expand,
         "layer_types": _kinds("linear_attention"), "num_local_experts": integer("expert_count", 0),
         "num_experts_per_tok": integer("expert_used_count", 0), "shared_intermediate_size": width,
         "position_embedding_type": lambda facts: "rope" if facts.read.value("rope.scaling.finetuned") else None,
         "max_position_embeddings": lambda facts: facts.read.integer("context_length") if facts.read.value("rope.scaling.finetuned")
         else min(facts.read.integer("context_length"), _NOPE_CONTEXT)},
        ROTATED, values=_MAMBA2, renamed={"head_dim": None},
        joins={**joins, "model.layers.{}.shared_mlp.input_linear": Join((gate, up))},
    )  # fmt: skip


def _period(layers: Rule, other: Rule) -> Rule:
    """How many layers there are from one of a kind to the next; `other` is the first of them."""

    def rule(facts: Facts) -> int:
        found = layers(facts)
        period = found[1] - found[0] if len(found) > 1 else facts.num_layers
        if found != list(range(other(facts), facts.num_layers, max(period, 1))):
            facts.read.refuse("attention.head_count_kv", f"layers {found!s:.40} do not follow one another in equal steps")
        return period

    return rule


def _with_attention(facts: Facts) -> list[int]:
    return [layer for layer, heads in enumerate(facts.kv_heads) if heads]


def _with_experts(facts: Facts) -> list[int]:
    return facts.layers_with("ffn_gate_inp.weight")


def _first(layers: Rule) -> Rule:
    return lambda facts: min(layers(facts), default=facts.num_layers)


_JAMBA_EXPERTS, _JAMBA_JOINED = experts_of("model.layers.{}.feed_forward")
_LFM2: Names = {
    **QKVO, "token_embd": TOP["token_embd"], "token_embd_norm": "model.embedding_norm", "output": TOP["output"],
    "attn_norm": "model.layers.{}.operator_norm", "ffn_norm": "model.layers.{}.ffn_norm",
    "attn_output": "model.layers.{}.self_attn.out_proj", "attn_q_norm": "model.layers.{}.self_attn.q_layernorm",
    "attn_k_norm": "model.layers.{}.self_attn.k_layernorm", "ffn_gate": "model.layers.{}.feed_forward.w1",
    "ffn_up": "model.layers.{}.feed_forward.w3", "ffn_down": "model.layers.{}.feed_forward.w2",
    "shortconv.conv": "model.layers.{}.conv.conv", "shortconv.in_proj": "model.layers.{}.conv.in_proj",
    "shortconv.out_proj": "model.layers.{}.conv.out_proj",
}  # fmt: skip
_LFM2_FIELDS: Mapping[str, Rule] = {
    "norm_eps": _EPSILON, "conv_L_cache": integer("shortconv.l_cache"), "layer_types": _kinds("conv"),
    "conv_bias": lambda facts: any(name.endswith("shortconv.conv.bias") for name in facts.tensors),
}  # fmt: skip
_LFM2_EXPERTS, _LFM2_JOINED = experts_of("model.layers.{}.feed_forward")
_DELTA: Names = {
    **TOP, **ATTENTION, **HEAD_NORMS, "post_attention_norm": FFN_NORM["ffn_norm"], "ssm_conv1d": "model.layers.{}.linear_attn.conv1d",
    "ssm_dt": Bare("model.layers.{}.linear_attn.dt"), "ssm_a": Bare("model.layers.{}.linear_attn.A_log"),
    "ssm_norm": "model.layers.{}.linear_attn.norm", "ssm_out": "model.layers.{}.linear_attn.out_proj",
}  # fmt: skip
_DELTA_FIELDS: Mapping[str, Rule] = {
    **QKV_BIAS, "linear_conv_kernel_dim": integer("ssm.conv_kernel"), "linear_key_head_dim": integer("ssm.state_size"),
    "linear_num_key_heads": integer("ssm.group_count"), "linear_num_value_heads": integer("ssm.time_step_rank"),
    "linear_value_head_dim": _head_size,
    "layer_types": lambda facts: [
        "full_attention" if f"blk.{layer}.attn_q.weight" in facts.tensors else "linear_attention" for layer in range(facts.num_layers)
    ],
}  # fmt: skip
_QWEN35 = Architecture(
    "qwen3_5_text", "Qwen3_5ForCausalLM",
    {**_DELTA, **GATED, "attn_qkv": "model.layers.{}.linear_attn.in_proj_qkv", "attn_gate": "model.layers.{}.linear_attn.in_proj_z",
     "ssm_alpha": "model.layers.{}.linear_attn.in_proj_a", "ssm_beta": "model.layers.{}.linear_attn.in_proj_b"},
    {**SILU, **_DELTA_FIELDS},
    rows={"attn_qkv": "value heads", "attn_gate": "value heads", "ssm_conv1d": "value heads", "ssm_alpha": "values", "ssm_beta": "values",
          "ssm_dt": "values", "ssm_a": "values"},
    columns={"ssm_out": "value heads"}, values={**_KERNEL, "ssm_a": ("log", "flat")}, offset_norms=True, plain_norms=("ssm_norm",),
    is_partly_rotary=True, expected={"full_attention_interval": (), "rope.dimension_sections": ()},
)  # fmt: skip

RECURRENT: Mapping[str, Architecture] = {
    "mamba": Architecture(
        "mamba", "MambaForCausalLM",
        {**_BACKBONE, **_mamba("backbone.layers.{}.mixer"), "ssm_dt": "backbone.layers.{}.mixer.dt_proj"}, _MAMBA1_SIZES,
        values=_MAMBA, is_rotary=False, has_heads=False, renamed=_NO_HEADS,
        variants=((stated("ssm.dt_b_c_rms"), Architecture(
            "falcon_mamba", "FalconMambaForCausalLM",
            {**_BACKBONE, **_mamba("backbone.layers.{}.mixer"), "ssm_dt": "backbone.layers.{}.mixer.dt_proj"},
            {**_MAMBA1_SIZES, "mixer_rms_eps": always(1e-6)},
            values=_MAMBA, is_rotary=False, has_heads=False, renamed=_NO_HEADS, expected={"ssm.dt_b_c_rms": (True,)},
        )),),
    ),
    "mamba2": Architecture(
        "mamba2", "Mamba2ForCausalLM", {**_BACKBONE, **_mamba2("backbone.layers.{}.mixer")},
        {**_MAMBA_SIZES, "num_heads": integer("ssm.time_step_rank"), "head_dim": _head_size, "n_groups": integer("ssm.group_count", 1)},
        values=_MAMBA2, is_rotary=False, has_heads=False, renamed=_NO_HEADS | {"intermediate_size": None},
    ),
    "granitehybrid": replace(
        _granite(
            {"ffn_down": "model.layers.{}.shared_mlp.output_linear"}, "ffn_gate", "ffn_up", lambda facts: max(facts.widths, default=0), {}
        ),
        variants=((stated("expert_count"), _granite(
            {**_GRANITE_EXPERTS, "ffn_gate_inp": "model.layers.{}.block_sparse_moe.router",
             "ffn_down_shexp": "model.layers.{}.shared_mlp.output_linear"},
            "ffn_gate_shexp", "ffn_up_shexp", integer("expert_shared_feed_forward_length"), _GRANITE_JOINED,
        )),),
    ),
    "jamba": Architecture(
        "jamba", "JambaForCausalLM",
        {**TOP, **ATTENTION, **_mamba("model.layers.{}.mamba"), **_JAMBA_EXPERTS, "output_norm": "model.final_layernorm",
         "ssm_dt": "model.layers.{}.mamba.dt_proj", "ssm_dt_norm": "model.layers.{}.mamba.dt_layernorm",
         "ssm_b_norm": "model.layers.{}.mamba.b_layernorm", "ssm_c_norm": "model.layers.{}.mamba.c_layernorm",
         "ffn_norm": "model.layers.{}.pre_ff_layernorm", "ffn_gate_inp": "model.layers.{}.feed_forward.router",
         **{f"ffn_{part}": f"model.layers.{{}}.feed_forward.{part}_proj" for part in ("gate", "up", "down")}},
        {**SILU, "mamba_d_state": integer("ssm.state_size"), "mamba_d_conv": integer("ssm.conv_kernel"), "mamba_expand": _expand,
         "mamba_dt_rank": integer("ssm.time_step_rank"), "num_experts": integer("expert_count"),
         "num_experts_per_tok": integer("expert_used_count"), "attn_layer_period": _period(_with_attention, _first(_with_attention)),
         "attn_layer_offset": _first(_with_attention), "expert_layer_period": _period(_with_experts, _first(_with_experts)),
         "expert_layer_offset": _first(_with_experts)},
        values=_MAMBA, joins=_JAMBA_JOINED, is_rotary=False, renamed={"head_dim": None}, expected=_NO_ROPE,
    ),
    "falcon-h1": Architecture(
        "falcon_h1", "FalconH1ForCausalLM",
        {**TOP, **ATTENTION, **_mamba2("model.layers.{}.mamba"), "output_norm": "model.final_layernorm",
         "ffn_norm": "model.layers.{}.pre_ff_layernorm",
         **{f"ffn_{part}": f"model.layers.{{}}.feed_forward.{part}_proj" for part in ("gate", "up", "down")}},
        {**SILU, **QKV_BIAS, **_prefixed("mamba"), "mamba_d_ssm": integer("ssm.inner_size"), "mamba_rms_norm": has("blk.0.ssm_norm.weight"),
         "mamba_norm_before_gate": always(False), "mlp_bias": has("blk.0.ffn_up.bias"), "projectors_bias": has("blk.0.ssm_out.bias"),
         **{name: always(1.0) for name in (  # the converter multiplies weights by them
             "lm_head_multiplier", "embedding_multiplier", "key_multiplier", "attention_in_multiplier", "attention_out_multiplier",
             "ssm_in_multiplier", "ssm_out_multiplier")},
         "mlp_multipliers": always([1.0, 1.0]), "ssm_multipliers": always([1.0] * 5)},
        values=_MAMBA2,
    ),
    "nemotron_h": Architecture(
        "nemotron_h", "NemotronHForCausalLM",
        {**_mamba2("model.layers.{}.mixer"), "token_embd": "model.embeddings", "output_norm": "model.norm_f", "output": TOP["output"],
         "attn_norm": "model.layers.{}.norm", "attn_output": "model.layers.{}.mixer.o_proj",
         **{f"attn_{part}": f"model.layers.{{}}.mixer.{part}_proj" for part in "qkv"},
         **{f"ffn_{part}": f"model.layers.{{}}.mixer.{part}_proj" for part in ("up", "down")}},
        {"layer_norm_epsilon": _EPSILON, "mlp_hidden_act": always("relu2"), "ssm_state_size": integer("ssm.state_size"),
         "mamba_num_heads": integer("ssm.time_step_rank"), "mamba_head_dim": _head_size, "n_groups": integer("ssm.group_count"),
         "conv_kernel": integer("ssm.conv_kernel"),
         "layers_block_type": lambda facts: [
             "full_attention" if heads else "mlp" if width else "linear_attention"
             for heads, width in zip(facts.kv_heads, facts.widths, strict=True)],
         "attention_bias": lambda facts: any(name.endswith("attn_q.bias") for name in facts.tensors),
         "mlp_bias": lambda facts: any(name.endswith("ffn_up.bias") for name in facts.tensors),
         "use_bias": lambda facts: any(name.endswith("ssm_in.bias") for name in facts.tensors),
         "use_conv_bias": lambda facts: any(name.endswith("ssm_conv1d.bias") for name in facts.tensors)},
        values=_MAMBA2, is_rotary=False, expected=_NO_ROPE,
    ),
    "lfm2": Architecture(
        "lfm2", "Lfm2ForCausalLM", _LFM2, {**_LFM2_FIELDS, "block_auto_adjust_ff_dim": always(False)},
        values={"shortconv.conv.weight": ("kernel",)}, renamed={"head_dim": None},
    ),
    "lfm2moe": Architecture(
        "lfm2_moe", "Lfm2MoeForCausalLM",
        {**_LFM2, **_LFM2_EXPERTS, "ffn_gate_inp": "model.layers.{}.feed_forward.gate",
         "exp_probs_b": Bare("model.layers.{}.feed_forward.expert")},
        {**_LFM2_FIELDS, "num_experts": integer("expert_count"), "num_experts_per_tok": integer("expert_used_count"),
         "moe_intermediate_size": integer("expert_feed_forward_length"), "num_dense_layers": integer("leading_dense_block_count"),
         "norm_topk_prob": always(True), "routed_scaling_factor": always(1.0),
         "use_expert_bias": lambda facts: any(name.endswith("exp_probs_b.bias") for name in facts.tensors)},
        values={"shortconv.conv.weight": ("kernel",)}, joins=_LFM2_JOINED, renamed={"head_dim": None},
        expected={"expert_gating_func": (2,)},
    ),
    "qwen3next": Architecture(
        "qwen3_next", "Qwen3NextForCausalLM",
        {**_DELTA, **ROUTER, **EXPERTS, **SHARED_EXPERT, "ssm_in": "model.layers.{}.linear_attn.in_proj_qkvz",
         "ssm_ba": "model.layers.{}.linear_attn.in_proj_ba"},
        {**QWEN, **_DELTA_FIELDS, "norm_topk_prob": always(True),
         "shared_expert_intermediate_size": integer("expert_shared_feed_forward_length")},
        joins={**JOINED, "model.layers.{}.linear_attn.in_proj_qkvz": Join(("attn_qkv", "attn_gate"), "qkvz by head")},
        values={**_KERNEL, "ssm_a": ("log", "flat"), "ffn_gate_inp_shexp.weight": ("row",)}, offset_norms=True, plain_norms=("ssm_norm",),
        is_partly_rotary=True, expected={"full_attention_interval": ()},
    ),
    "qwen35": _QWEN35,
    "qwen35moe": replace(
        _QWEN35, model_type="qwen3_5_moe_text", model_class="Qwen3_5MoeForCausalLM",
        names={**{part: name for part, name in _QWEN35.names.items() if part not in GATED}, **ROUTER, **EXPERTS, **SHARED_EXPERT},
        config={**QWEN, **_DELTA_FIELDS, "shared_expert_intermediate_size": integer("expert_shared_feed_forward_length")},
        joins=JOINED, values={**_QWEN35.values, "ffn_gate_inp_shexp.weight": ("row",)},
    ),
}  # fmt: skip
