"""The mixtures of experts that are read from GGUF: a table of data, a line or a few for each."""

from __future__ import annotations

from collections.abc import Mapping

from cupola.compiler.sources.gguf_architecture import (
    ATTENTION,
    FFN_NORM,
    HEAD_NORMS,
    QKV_BIAS,
    RMS,
    SILU,
    TOP,
    Architecture,
    Bare,
    Join,
    Names,
)  # fmt: skip
from cupola.compiler.sources.gguf_facts import Facts, Rule, always, integer, windows


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
_QWEN: Mapping[str, Rule] = {**SILU, **COUNTS, "moe_intermediate_size": _width, "decoder_sparse_step": always(1)}
_GPT_OSS_EXPERTS, _GPT_OSS_JOINED = experts_of("model.layers.{}.mlp", "in turns")

MIXTURES: Mapping[str, Architecture] = {
    "qwen2moe": Architecture(
        "qwen2_moe", "Qwen2MoeForCausalLM",
        {**TOP, **ATTENTION, **FFN_NORM, **ROUTER, **EXPERTS, "ffn_gate_inp_shexp": "model.layers.{}.mlp.shared_expert_gate",
         "ffn_gate_shexp": "model.layers.{}.mlp.shared_expert.gate_proj", "ffn_up_shexp": "model.layers.{}.mlp.shared_expert.up_proj",
         "ffn_down_shexp": "model.layers.{}.mlp.shared_expert.down_proj"},
        {**_QWEN, "norm_topk_prob": always(False), "qkv_bias": lambda facts: "blk.0.attn_q.bias" in facts.tensors,
         "shared_expert_intermediate_size": lambda facts: facts.read.integer("expert_shared_feed_forward_length", max(facts.widths))},
        joins=JOINED, values={"ffn_gate_inp_shexp": ("row",)},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe", "Qwen3MoeForCausalLM", {**TOP, **ATTENTION, **HEAD_NORMS, **FFN_NORM, **ROUTER, **EXPERTS},
        {**_QWEN, **QKV_BIAS, "norm_topk_prob": always(True)}, joins=JOINED,
    ),
    "gpt-oss": Architecture(
        "gpt_oss", "GptOssForCausalLM",
        {**TOP, **ATTENTION, "post_attention_norm": FFN_NORM["ffn_norm"], "attn_sinks": Bare("model.layers.{}.self_attn.sinks"),
         "ffn_gate_inp": "model.layers.{}.mlp.router", **_GPT_OSS_EXPERTS},
        {**RMS, **QKV_BIAS, "num_local_experts": integer("expert_count"), "num_experts_per_tok": integer("expert_used_count"),
         "intermediate_size": integer("expert_feed_forward_length"), "sliding_window": integer("attention.sliding_window"),
         "layer_types": windows(2)},
        joins=_GPT_OSS_JOINED, transposed=("ffn_gate_exps", "ffn_down_exps", "ffn_gate_up_exps"), rows={"ffn_gate_up_exps": "in turns"},
        rope={"yarn": {"truncate": False}},
    ),
}  # fmt: skip
