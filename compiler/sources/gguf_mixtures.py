"""The mixtures of experts that are read from GGUF: a table of data, a line or a few for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cupola.compiler.sources.gguf_architecture import (
    ATTENTION,
    FFN_NORM,
    GATED,
    HEAD_NORMS,
    LLAMA,
    QKV_BIAS,
    QKVO,
    RMS,
    ROTATED,
    SCALES,
    SILU,
    TOP,
    Architecture,
    Bare,
    Join,
    Names,
)  # fmt: skip
from cupola.compiler.sources.gguf_facts import (
    Facts,
    Rule,
    always,
    flag,
    has,
    integer,
    optional_integer,
    optional_real,
    real,
    stated,
    windows,
)  # fmt: skip


def experts_of(module: str, rows: str = "") -> tuple[Names, Mapping[str, Join]]:
    """The names of the matrices of experts, and of those that are made of gates and ups."""
    names = {"ffn_down_exps": Bare(f"{module}.experts.down_proj"), "ffn_gate_up_exps": Bare(f"{module}.experts.gate_up_proj")}
    return names, {Bare(f"{module}.experts.gate_up_proj"): Join(("ffn_gate_exps", "ffn_up_exps"), rows)}


def _width(facts: Facts) -> int:
    """The width of an expert; files that don't say it have the width of those that a token goes to."""
    used = max(facts.read.integer("expert_used_count"), 1)
    return facts.read.integer("expert_feed_forward_length", max(facts.widths, default=0) // used)


EXPERTS, JOINED = experts_of("model.layers.{}.mlp")
ROUTER: Names = {"ffn_gate_inp": "model.layers.{}.mlp.gate"}
COUNTS: Mapping[str, Rule] = {"num_experts": integer("expert_count"), "num_experts_per_tok": integer("expert_used_count")}
QWEN: Mapping[str, Rule] = {**SILU, **COUNTS, "moe_intermediate_size": _width, "decoder_sparse_step": always(1)}
_GPT_OSS_EXPERTS, _GPT_OSS_JOINED = experts_of("model.layers.{}.mlp", "in turns")


def shared_in(module: str) -> Names:
    """The names of an expert that every token goes to."""
    return {f"ffn_{part}_shexp": f"{module}.{part}_proj" for part in ("gate", "up", "down")}


SHARED_EXPERT: Names = {
    **shared_in("model.layers.{}.mlp.shared_expert"), "ffn_gate_inp_shexp": "model.layers.{}.mlp.shared_expert_gate",
}  # fmt: skip
_SCORES: Names = {"exp_probs_b": Bare("model.layers.{}.mlp.gate.e_score_correction")}
_SHARED = shared_in("model.layers.{}.mlp.shared_experts")
_SIGMOID: Mapping[str, tuple[object, ...]] = {"expert_gating_func": (2,)}
_ROUTED: Mapping[str, Rule] = {  # as DeepSeek's classes call them
    "n_routed_experts": integer("expert_count"), "num_experts_per_tok": integer("expert_used_count"), "moe_intermediate_size": _width,
    "n_shared_experts": integer("expert_shared_count", 0), "first_k_dense_replace": integer("leading_dense_block_count", 0),
    "routed_scaling_factor": real("expert_weights_scale", 1.0), "norm_topk_prob": flag("expert_weights_norm", False),
    "n_group": integer("expert_group_count", 1), "topk_group": integer("expert_group_used_count", 1), "num_mtp_layers": always(0),
}  # fmt: skip
_LATENT: Names = {
    **TOP, **FFN_NORM, **GATED, **ROUTER, **EXPERTS, **_SHARED, "attn_norm": ATTENTION["attn_norm"],
    "attn_output": QKVO["attn_output"], "attn_q": QKVO["attn_q"], "attn_q_a": "model.layers.{}.self_attn.q_a_proj",
    "attn_q_a_norm": "model.layers.{}.self_attn.q_a_layernorm", "attn_q_b": "model.layers.{}.self_attn.q_b_proj",
    "attn_kv_a_mqa": "model.layers.{}.self_attn.kv_a_proj_with_mqa", "attn_kv_a_norm": "model.layers.{}.self_attn.kv_a_layernorm",
    "attn_kv_b": "model.layers.{}.self_attn.kv_b_proj",
}  # fmt: skip


def _of_head(what: str) -> Rule:
    """The size of a head's keys or values; of files that keep the latent vector, another key has that."""
    return lambda facts: facts.read.integer(f"attention.{what}_length_mla", facts.read.integer(f"attention.{what}_length"))


def _unturned(facts: Facts) -> int:
    return int(_of_head("key")(facts)) - facts.rotary_dim


_LATENT_SIZES: Mapping[str, Rule] = {
    **SILU, **_ROUTED, "q_lora_rank": optional_integer("attention.q_lora_rank"), "kv_lora_rank": integer("attention.kv_lora_rank"),
    "qk_rope_head_dim": lambda facts: facts.rotary_dim, "qk_nope_head_dim": _unturned, "v_head_dim": _of_head("value"),
    "num_key_value_heads": lambda facts: facts.num_heads, "attention_bias": has("blk.0.attn_q_a.bias"),
}  # fmt: skip


def _mscale(facts: Facts) -> float:
    """DeepSeek's two factors, which are equal in every release; the file has a tenth of them, or 0 for none."""
    stated = facts.read.value("rope.scaling.yarn_log_multiplier")
    return round(facts.read.real("rope.scaling.yarn_log_multiplier") * 10, 6) if stated else 0.0


def _latent(model_type: str, model_class: str, config: Mapping[str, Rule], names: Names) -> Architecture:
    return Architecture(
        model_type, model_class, {**_LATENT, **names}, {**_LATENT_SIZES, **config},
        joins={**JOINED, "model.layers.{}.self_attn.kv_b_proj": Join(("attn_k_b", "attn_v_b"), how="latent")},
        rope={"yarn": {"mscale": _mscale, "mscale_all_dim": _mscale}}, renamed={"head_dim": None}, is_latent=True,
        expected={"expert_gating_func": (0, 1, 2), "expert_shared_feed_forward_length": ()},
    )  # fmt: skip


def _topk_method(facts: Facts) -> str:
    return "group_limited_greedy" if facts.read.integer("expert_group_count", 1) > 1 else "greedy"


_PHI_MSCALE = 1.243163121016122  # of Phi-3.5-MoE, the only release with LongRoPE; llama.cpp reckons with 1.19
_DEEPSEEK_V3 = _latent("deepseek_v3", "DeepseekV3ForCausalLM", {"rope_interleave": always(True)}, _SCORES)
_GRANITE_EXPERTS, _GRANITE_JOINED = experts_of("model.layers.{}.block_sparse_moe")
_GRANITE: Mapping[str, Rule] = {
    **SILU, **QKV_BIAS, **SCALES, "attention_multiplier": real("attention.scale"), "num_local_experts": integer("expert_count"),
    "num_experts_per_tok": integer("expert_used_count"),
}  # fmt: skip
_GRANITE_NAMES: Names = {**TOP, **ATTENTION, **FFN_NORM, **_GRANITE_EXPERTS, "ffn_gate_inp": "model.layers.{}.block_sparse_moe.router"}
_LOCAL: Mapping[str, Rule] = {**SILU, "num_local_experts": integer("expert_count"), "num_experts_per_tok": integer("expert_used_count")}
_HUNYUAN_NORMS: Names = {
    "attn_q_norm": "model.layers.{}.self_attn.query_layernorm", "attn_k_norm": "model.layers.{}.self_attn.key_layernorm",
}  # fmt: skip

MIXTRAL = Architecture(
    "mixtral", "MixtralForCausalLM", {**TOP, **ATTENTION, **FFN_NORM, **ROUTER, **EXPERTS}, _LOCAL, ROTATED, joins=JOINED
)
MIXTURES: Mapping[str, Architecture] = {
    "qwen2moe": Architecture(
        "qwen2_moe", "Qwen2MoeForCausalLM",
        {**TOP, **ATTENTION, **FFN_NORM, **ROUTER, **EXPERTS, **SHARED_EXPERT},
        {**QWEN, "norm_topk_prob": always(False), "qkv_bias": lambda facts: "blk.0.attn_q.bias" in facts.tensors,
         "shared_expert_intermediate_size": lambda facts: facts.read.integer("expert_shared_feed_forward_length", max(facts.widths))},
        joins=JOINED, values={"ffn_gate_inp_shexp.weight": ("row",)},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", {**TOP, **ATTENTION, **HEAD_NORMS, **FFN_NORM, **ROUTER, **EXPERTS},
        {**QWEN, **QKV_BIAS, "norm_topk_prob": always(True)}, joins=JOINED,
    ),
    "gpt-oss": Architecture(
        "gpt_oss", "GptOssForCausalLM",
        {**TOP, **ATTENTION, "post_attention_norm": FFN_NORM["ffn_norm"], "attn_sinks": Bare("model.layers.{}.self_attn.sinks"),
         "ffn_gate_inp": "model.layers.{}.mlp.router", **_GPT_OSS_EXPERTS},
        {**RMS, **QKV_BIAS, "num_local_experts": integer("expert_count"), "num_experts_per_tok": integer("expert_used_count"),
         "intermediate_size": integer("expert_feed_forward_length"), "sliding_window": integer("attention.sliding_window"),
         "layer_types": windows(2)},
        joins=_GPT_OSS_JOINED, transposed=("ffn_gate_exps", "ffn_down_exps", "ffn_gate_up_exps"), rows={"ffn_gate_up_exps": "in turns"},
        rope={"yarn": {"truncate": always(False)}},
    ),
    "olmoe": Architecture(
        "olmoe", "OlmoeForCausalLM", {**TOP, **ATTENTION, **HEAD_NORMS, **FFN_NORM, **ROUTER, **EXPERTS},
        {**SILU, **QKV_BIAS, **COUNTS, "norm_topk_prob": always(False), "clip_qkv": optional_real("attention.clamp_kqv")},
        joins=JOINED, renamed={"head_dim": None},
    ),
    "granitemoe": Architecture(
        "granitemoe", "GraniteMoeForCausalLM", _GRANITE_NAMES, _GRANITE, ROTATED, joins=_GRANITE_JOINED, renamed={"head_dim": None},
        variants=((stated("expert_shared_feed_forward_length"), Architecture(
            "granitemoeshared", "GraniteMoeSharedForCausalLM",
            {**_GRANITE_NAMES, "ffn_down_shexp": "model.layers.{}.shared_mlp.output_linear"},
            {**_GRANITE, "shared_intermediate_size": integer("expert_shared_feed_forward_length")}, ROTATED,
            joins={**_GRANITE_JOINED, "model.layers.{}.shared_mlp.input_linear": Join(("ffn_gate_shexp", "ffn_up_shexp"))},
            renamed={"head_dim": None},
        )),),
    ),
    "glm4moe": Architecture(
        "glm4_moe", "Glm4MoeForCausalLM",
        {**TOP, **ATTENTION, **HEAD_NORMS, **GATED, **ROUTER, **EXPERTS, **_SHARED, **_SCORES,
         "post_attention_norm": FFN_NORM["ffn_norm"]},
        {**SILU, **QKV_BIAS, **_ROUTED, "use_qk_norm": has("blk.0.attn_q_norm.weight")},
        joins=JOINED, expected=_SIGMOID, is_partly_rotary=True,
    ),
    "dots1": Architecture(
        "dots1", "Dots1ForCausalLM", {**LLAMA, **HEAD_NORMS, **ROUTER, **EXPERTS, **_SHARED, **_SCORES},
        {**SILU, **QKV_BIAS, **_ROUTED, "sliding_window": always(None), "layer_types": windows(1)}, joins=JOINED, expected=_SIGMOID,
    ),
    "deepseek2": replace(
        _latent("deepseek_v2", "DeepseekV2ForCausalLM", {"topk_method": _topk_method}, {}),
        variants=((stated("expert_gating_func", 2), _DEEPSEEK_V3),),
    ),
    "phimoe": Architecture(
        "phimoe", "PhimoeForCausalLM",
        {**TOP, **ATTENTION, **FFN_NORM, **EXPERTS, "ffn_gate_inp": "model.layers.{}.mlp.router"},
        {**_LOCAL, **QKV_BIAS, "lm_head_bias": has("output.bias"), "sliding_window": optional_integer("attention.sliding_window")},
        joins=JOINED, rope={"longrope": {"short_mscale": always(_PHI_MSCALE), "long_mscale": always(_PHI_MSCALE)}},
    ),
    "ernie4_5-moe": Architecture(
        "ernie4_5_moe", "Ernie4_5_MoeForCausalLM",
        {**LLAMA, **ROUTER, **EXPERTS, **_SHARED, "exp_probs_b": Bare("model.layers.{}.mlp.gate.moe_statics.e_score_correction")},
        {**SILU, "moe_num_experts": integer("expert_count"), "moe_k": integer("expert_used_count"), "moe_intermediate_size": _width,
         "moe_layer_interval": integer("interleave_moe_layer_step"), "moe_layer_start_index": integer("leading_dense_block_count"),
         "moe_layer_end_index": lambda facts: facts.num_layers - 1, "moe_num_shared_experts": integer("expert_shared_count", 0),
         "use_bias": has("blk.0.attn_q.bias")},
        joins=JOINED, values={"exp_probs_b.bias": ("row",)}, expected={"expert_shared_feed_forward_length": ()},
    ),
    "hunyuan-moe": Architecture(
        "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM",
        {**TOP, **ATTENTION, **_HUNYUAN_NORMS, **FFN_NORM, **EXPERTS, **shared_in("model.layers.{}.mlp.shared_mlp"),
         "ffn_gate_inp": "model.layers.{}.mlp.gate.wg"},
        {**SILU, **QKV_BIAS, "num_experts": integer("expert_count"), "moe_topk": integer("expert_used_count")},
        joins=JOINED,
        expected={"expert_feed_forward_length": (), "expert_shared_feed_forward_length": (), "expert_shared_count": (1,)},
    ),
    "minimax-m2": Architecture(
        "minimax_m2", "MiniMaxM2ForCausalLM",
        {**TOP, **ATTENTION, **HEAD_NORMS, **FFN_NORM, **ROUTER, **EXPERTS, "exp_probs_b": Bare("model.layers.{}.mlp.e_score_correction")},
        {**_LOCAL, "intermediate_size": integer("expert_feed_forward_length")}, joins=JOINED, expected=_SIGMOID, is_partly_rotary=True,
    ),
}  # fmt: skip
