"""The architectures that are read from GGUF: a table of data, a line or a few for each.

Names and keys are those of https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py; what the converter changes of
values is that of https://github.com/ggml-org/llama.cpp/tree/master/conversion, and is undone in `gguf_tensors`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from cupola.compiler.sources.gguf_facts import (
    Rule,
    always,
    attention_scalar,
    flag,
    has,
    optional_integer,
    optional_real,
    real,
    windows,
)

Names = Mapping[str, str]
ROTATED = {"attn_q": "rotated q", "attn_k": "rotated k"}
"""Rows of q and k that the converter interleaves, for models whose rotary embedding llama.cpp applies to neighbours."""

RMS: Mapping[str, Rule] = {"rms_norm_eps": real("attention.layer_norm_rms_epsilon")}
LAYER_NORM = real("attention.layer_norm_epsilon")
TOP: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
QKVO: Names = {
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
}
ATTENTION: Names = {"attn_norm": "model.layers.{}.input_layernorm", **QKVO}
HEAD_NORMS: Names = {"attn_q_norm": "model.layers.{}.self_attn.q_norm", "attn_k_norm": "model.layers.{}.self_attn.k_norm"}
FFN_NORM: Names = {"ffn_norm": "model.layers.{}.post_attention_layernorm"}
UP_DOWN: Names = {"ffn_up": "model.layers.{}.mlp.up_proj", "ffn_down": "model.layers.{}.mlp.down_proj"}
GATED: Names = {"ffn_gate": "model.layers.{}.mlp.gate_proj", **UP_DOWN}
LLAMA: Names = {**TOP, **ATTENTION, **FFN_NORM, **GATED}
SANDWICH: Names = {  # a norm on either side of attention and MLP
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
BEHIND: Names = {  # norms of what attention and MLP give, and none before them
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}


def _gpt(trunk: str, layer: str, parts: Names, top: Names) -> Names:
    """The names of a model whose trunk is called `trunk` and whose layers `layer`."""
    return {
        **{part: f"{trunk}.{name}" for part, name in top.items()},
        "output": "lm_head",
        **{part: f"{trunk}.{layer}.{{}}.{name}" for part, name in parts.items()},
    }


_JOINED: Names = {  # BLOOM, GPT-NeoX and Falcon
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


@dataclass(frozen=True)
class Architecture:
    """An architecture of GGUF, as a class of transformers.

    Attributes:
        model_type: transformers' name.
        model_class: the class.
        names: the file's names of parts -> the model's; those of layers have `{}` for the layer.
        names_with: further names, for files that have a certain tensor.
        config: the fields of the configuration that not every architecture has, each by its rule.
        rows: the parts whose rows the converter moved -> how (`gguf_tensors.ROW_ORDERS`).
        offset_norms: True if the file's norms hold 1 more than the model's.
        transposed: the parts whose matrices lie the other way round in the model.
        renamed: usual names of fields -> the configuration's own; None for one that it does not have.
        is_rotary: False for models that have no rotary embedding.
        is_partly_rotary: True if it may turn a part of each head only.
        notes: for people.
    """

    model_type: str
    model_class: str
    names: Names = field(default_factory=lambda: LLAMA)
    config: Mapping[str, Rule] = field(default_factory=lambda: RMS)
    rows: Mapping[str, str] = field(default_factory=dict)
    offset_norms: bool = False
    transposed: tuple[str, ...] = ()
    renamed: Mapping[str, str | None] = field(default_factory=dict)
    is_rotary: bool = True
    is_partly_rotary: bool = False
    names_with: Mapping[str, Names] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def names_in(self, tensors: Container[str]) -> Names:
        """The names for a file of these tensors."""
        return {
            **self.names,
            **{part: name for tensor, names in self.names_with.items() if tensor in tensors for part, name in names.items()},
        }


_SILU: Mapping[str, Rule] = {**RMS, "hidden_act": always("silu")}
_BIASES: Mapping[str, Rule] = {"attention_bias": has("blk.0.attn_q.bias"), "mlp_bias": has("blk.0.ffn_up.bias")}
_QKV_BIAS: Mapping[str, Rule] = {"attention_bias": has("blk.0.attn_q.bias")}
_GEMMA: Mapping[str, Rule] = {**RMS, "hidden_activation": always("gelu_pytorch_tanh")}
_SCALES: Mapping[str, Rule] = {
    "embedding_multiplier": real("embedding_scale", 1.0),
    "residual_multiplier": real("residual_scale", 1.0),
    "logits_scaling": real("logit_scale", 1.0),
}
_WINDOW: Mapping[str, Rule] = {"sliding_window": optional_integer("attention.sliding_window")}
_GPT2_FIELDS = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner", "num_key_value_heads": None, "head_dim": None,
}  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", LLAMA, {**_SILU, **_BIASES}, ROTATED),
    "internlm2": Architecture("llama", "LlamaForCausalLM", LLAMA, {**_SILU, **_BIASES}, ROTATED),
    "arcee": Architecture(
        "arcee", "ArceeForCausalLM", {**TOP, **ATTENTION, **FFN_NORM, **UP_DOWN}, {**RMS, **_BIASES, "hidden_act": always("relu2")}, ROTATED
    ),
    "smollm3": Architecture(
        "smollm3", "SmolLM3ForCausalLM", LLAMA,
        {**_SILU, **_BIASES, "no_rope_layer_interval": always(4), "use_sliding_window": always(False)}, ROTATED,
    ),
    "granite": Architecture(
        "granite", "GraniteForCausalLM", LLAMA, {**_SILU, **_BIASES, **_SCALES, "attention_multiplier": real("attention.scale")}, ROTATED
    ),
    "minicpm": Architecture(
        "granite", "GraniteForCausalLM", LLAMA,
        {**_SILU, **_BIASES, "embedding_multiplier": real("embedding_scale"), "residual_multiplier": real("residual_scale"),
         "logits_scaling": real("logit_scale"), "attention_multiplier": lambda facts: facts.head_dim**-0.5},
        ROTATED,
    ),
    "olmo": Architecture(
        "olmo", "OlmoForCausalLM", {"token_embd": TOP["token_embd"], "output": TOP["output"], **QKVO, **GATED},
        {"hidden_act": always("silu"), **_QKV_BIAS, "clip_qkv": optional_real("attention.clamp_kqv")}, ROTATED,
    ),
    "olmo2": Architecture(
        "olmo2", "Olmo2ForCausalLM", {**TOP, **QKVO, **HEAD_NORMS, **BEHIND, **GATED}, {**_SILU, **_QKV_BIAS}
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", LLAMA, _SILU),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**LLAMA, **HEAD_NORMS}, {**_SILU, **_QKV_BIAS}),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM", LLAMA, {**_SILU, "use_bias": has("blk.0.attn_q.bias")}),
    "seed_oss": Architecture(
        "seed_oss", "SeedOssForCausalLM",
        {**TOP, **ATTENTION, **GATED, "post_attention_norm": "model.layers.{}.post_attention_layernorm"},
        {**_SILU, **_BIASES, "attention_out_bias": has("blk.0.attn_output.bias")},
    ),
    "exaone4": Architecture(
        "exaone4", "Exaone4ForCausalLM", {**TOP, **QKVO, **HEAD_NORMS, **BEHIND, **GATED},
        {**_SILU, **_WINDOW, "layer_types": windows(4)},
    ),
    "phi3": Architecture(
        "phi3", "Phi3ForCausalLM",
        {**TOP, **FFN_NORM, "attn_norm": ATTENTION["attn_norm"], "attn_output": ATTENTION["attn_output"],
         "attn_qkv": "model.layers.{}.self_attn.qkv_proj", "ffn_up": "model.layers.{}.mlp.gate_up_proj", "ffn_down": UP_DOWN["ffn_down"]},
        {**_SILU, **_WINDOW}, is_partly_rotary=True,
    ),
    "glm4": Architecture(
        "glm4", "Glm4ForCausalLM",
        {**TOP, **ATTENTION, **FFN_NORM, "ffn_up": "model.layers.{}.mlp.gate_up_proj", "ffn_down": UP_DOWN["ffn_down"],
         "post_attention_norm": "model.layers.{}.post_self_attn_layernorm", "post_ffw_norm": "model.layers.{}.post_mlp_layernorm"},
        {**_SILU, **_QKV_BIAS}, is_partly_rotary=True,
    ),
    "gemma": Architecture("gemma", "GemmaForCausalLM", LLAMA, _GEMMA, offset_norms=True),
    "gemma2": Architecture(
        "gemma2", "Gemma2ForCausalLM", {**LLAMA, **SANDWICH},
        {**_GEMMA, "sliding_window": lambda facts: facts.read.integer("attention.sliding_window", 4096), "layer_types": windows(2, 4096),
         "attn_logit_softcapping": real("attn_logit_softcapping", 50.0), "final_logit_softcapping": real("final_logit_softcapping", 30.0),
         "query_pre_attn_scalar": attention_scalar(46)},
        offset_norms=True,
    ),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", {**LLAMA, **SANDWICH, **HEAD_NORMS},
        {**_GEMMA, **_WINDOW, "layer_types": windows(6), "final_logit_softcapping": optional_real("final_logit_softcapping"),
         "query_pre_attn_scalar": attention_scalar(62)},
        offset_norms=True,
    ),
    "command-r": Architecture(
        "cohere", "CohereForCausalLM", {**TOP, **ATTENTION, **HEAD_NORMS, **GATED},
        {"layer_norm_eps": LAYER_NORM, "logit_scale": real("logit_scale"), "use_qk_norm": has("blk.0.attn_q_norm.weight"),
         "hidden_act": always("silu"), **_QKV_BIAS},
    ),
    "cohere2": Architecture(
        "cohere2", "Cohere2ForCausalLM", {**TOP, **ATTENTION, **GATED},
        {"layer_norm_eps": LAYER_NORM, "logit_scale": real("logit_scale"), "hidden_act": always("silu"), **_QKV_BIAS, **_WINDOW,
         "layer_types": windows(4)},
    ),
    "nemotron": Architecture(
        "nemotron", "NemotronForCausalLM", {**TOP, **ATTENTION, **FFN_NORM, **UP_DOWN},
        {"norm_eps": LAYER_NORM, "hidden_act": always("relu2"), **_BIASES}, offset_norms=True, is_partly_rotary=True,
    ),
    "starcoder2": Architecture(
        "starcoder2", "Starcoder2ForCausalLM",
        {**TOP, **ATTENTION, **FFN_NORM, "ffn_up": "model.layers.{}.mlp.c_fc", "ffn_down": "model.layers.{}.mlp.c_proj"},
        {"norm_epsilon": LAYER_NORM, "use_bias": has("blk.0.attn_q.bias"), "hidden_act": always("gelu_pytorch_tanh"), **_WINDOW},
        notes=("GGUF does not say StarCoder2's sliding window: every layer sees all tokens, as in llama.cpp",),
    ),
    "stablelm": Architecture(
        "stablelm", "StableLmForCausalLM", LLAMA,
        {"layer_norm_eps": LAYER_NORM, "hidden_act": always("silu"), "use_qkv_bias": has("blk.0.attn_q.bias"),
         "use_parallel_residual": flag("use_parallel_residual", True), "qk_layernorm": always(False)},
        is_partly_rotary=True,
    ),
    "phi2": Architecture(
        "phi", "PhiForCausalLM",
        {**TOP, **ATTENTION, "output_norm": "model.final_layernorm", "attn_output": "model.layers.{}.self_attn.dense",
         "ffn_up": "model.layers.{}.mlp.fc1", "ffn_down": "model.layers.{}.mlp.fc2"},
        {"layer_norm_eps": LAYER_NORM, "hidden_act": always("gelu_new"), "qk_layernorm": always(False)}, is_partly_rotary=True,
    ),
    "falcon": Architecture(
        "falcon", "FalconForCausalLM",
        _gpt("transformer", "h", {part: name for part, name in _JOINED.items() if part != "ffn_norm"},
             {"token_embd": "word_embeddings", "output_norm": "ln_f"}),
        {"layer_norm_epsilon": LAYER_NORM, "bias": always(False), "alibi": always(False), "parallel_attn": always(True),
         "multi_query": lambda facts: facts.num_kv_heads == 1, "new_decoder_architecture": lambda facts: facts.num_kv_heads > 1,
         "num_ln_in_parallel_attn": lambda facts: 2 if "blk.0.attn_norm_2.weight" in facts.tensors else 1},
        {"attn_qkv": "falcon qkv"},
        names_with={"blk.0.attn_norm_2.weight": {"attn_norm": "transformer.h.{}.ln_mlp", "attn_norm_2": "transformer.h.{}.ln_attn"}},
        renamed={"num_key_value_heads": "num_kv_heads", "head_dim": None, "intermediate_size": "ffn_hidden_size"},
    ),
    "gptneox": Architecture(
        "gpt_neox", "GPTNeoXForCausalLM",
        {**_gpt("gpt_neox", "layers", {part: name.replace("self_attention", "attention") for part, name in _JOINED.items()},
                {"token_embd": "embed_in", "output_norm": "final_layer_norm"}), "output": "embed_out"},
        {"layer_norm_eps": LAYER_NORM, "use_parallel_residual": flag("use_parallel_residual", True), "hidden_act": always("gelu"),
         "attention_bias": has("blk.0.attn_qkv.bias")},
        {"attn_qkv": "joined qkv"}, renamed={"num_key_value_heads": None, "head_dim": None}, is_partly_rotary=True,
    ),
    "bloom": Architecture(
        "bloom", "BloomForCausalLM",
        _gpt("transformer", "h", _JOINED,
             {"token_embd": "word_embeddings", "token_embd_norm": "word_embeddings_layernorm", "output_norm": "ln_f"}),
        {"layer_norm_epsilon": LAYER_NORM}, {"attn_qkv": "joined qkv"}, is_rotary=False,
        renamed={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_key_value_heads": None, "head_dim": None,
                 "intermediate_size": None, "max_position_embeddings": "seq_length"},
    ),
    "gpt2": Architecture(
        "gpt2", "GPT2LMHeadModel",
        _gpt("transformer", "h",
             {"attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc",
              "ffn_down": "mlp.c_proj"}, {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}),
        {"layer_norm_epsilon": LAYER_NORM, "activation_function": always("gelu_new")}, is_rotary=False, renamed=_GPT2_FIELDS,
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    "mpt": Architecture(
        "mpt", "MptForCausalLM",
        _gpt("transformer", "blocks",
             {"attn_norm": "norm_1", "ffn_norm": "norm_2", "attn_qkv": "attn.Wqkv", "attn_output": "attn.out_proj", "ffn_up": "ffn.up_proj",
              "ffn_down": "ffn.down_proj"}, {"token_embd": "wte", "output_norm": "norm_f"}),
        {"layer_norm_epsilon": LAYER_NORM,
         "attn_config": lambda facts: {"alibi": True, "alibi_bias_max": round(facts.read.real("attention.max_alibi_bias")),
                                       "clip_qkv": optional_real("attention.clamp_kqv")(facts)}},
        is_rotary=False,
        renamed={"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
                 "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": "max_seq_len", "intermediate_size": None},
    ),
}  # fmt: skip
"""GGUF's name of an architecture -> how it is read."""
