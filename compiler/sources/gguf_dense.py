"""The dense architectures that are read from GGUF: a table of data, a line or a few for each."""

from __future__ import annotations

from collections.abc import Mapping

from cupola.compiler.sources.gguf_architecture import (
    ATTENTION,
    BEHIND,
    BIASES,
    FFN_NORM,
    GATED,
    HEAD_NORMS,
    LAYER_NORM,
    LLAMA,
    QKV_BIAS,
    QKVO,
    RMS,
    ROTATED,
    SANDWICH,
    SCALES,
    SILU,
    TOP,
    UP_DOWN,
    Architecture,
    Names,
)  # fmt: skip
from cupola.compiler.sources.gguf_facts import (
    Rule,
    always,
    attention_scalar,
    flag,
    has,
    optional_integer,
    optional_real,
    real,
    stated,
    windows,
)
from cupola.compiler.sources.gguf_mixtures import MIXTRAL


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


_GEMMA: Mapping[str, Rule] = {**RMS, "hidden_activation": always("gelu_pytorch_tanh")}
_WINDOW: Mapping[str, Rule] = {"sliding_window": optional_integer("attention.sliding_window")}
_GPT2_FIELDS = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner", "num_key_value_heads": None, "head_dim": None,
}  # fmt: skip
_GPT2 = _gpt("transformer", "h",
             {"attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc",
              "ffn_down": "mlp.c_proj"}, {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"})  # fmt: skip

DENSE: Mapping[str, Architecture] = {
    "llama": Architecture(
        "llama", "LlamaForCausalLM", LLAMA, {**SILU, **BIASES}, ROTATED, variants=((stated("expert_count"), MIXTRAL),)
    ),
    "internlm2": Architecture("llama", "LlamaForCausalLM", LLAMA, {**SILU, **BIASES}, ROTATED),
    "arcee": Architecture(
        "arcee", "ArceeForCausalLM", {**TOP, **ATTENTION, **FFN_NORM, **UP_DOWN}, {**RMS, **BIASES, "hidden_act": always("relu2")}, ROTATED
    ),
    "smollm3": Architecture(
        "smollm3", "SmolLM3ForCausalLM", LLAMA,
        {**SILU, **BIASES, "no_rope_layer_interval": always(4), "use_sliding_window": always(False)}, ROTATED,
    ),
    "granite": Architecture(
        "granite", "GraniteForCausalLM", LLAMA, {**SILU, **BIASES, **SCALES, "attention_multiplier": real("attention.scale")}, ROTATED
    ),
    "minicpm": Architecture(
        "granite", "GraniteForCausalLM", LLAMA,
        {**SILU, **BIASES, "embedding_multiplier": real("embedding_scale"), "residual_multiplier": real("residual_scale"),
         "logits_scaling": real("logit_scale"), "attention_multiplier": lambda facts: facts.head_dim**-0.5},
        ROTATED,
    ),
    "olmo": Architecture(
        "olmo", "OlmoForCausalLM", {"token_embd": TOP["token_embd"], "output": TOP["output"], **QKVO, **GATED},
        {"hidden_act": always("silu"), **QKV_BIAS, "clip_qkv": optional_real("attention.clamp_kqv")}, ROTATED,
    ),
    "olmo2": Architecture(
        "olmo2", "Olmo2ForCausalLM", {**TOP, **QKVO, **HEAD_NORMS, **BEHIND, **GATED}, {**SILU, **QKV_BIAS}
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", LLAMA, SILU),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**LLAMA, **HEAD_NORMS}, {**SILU, **QKV_BIAS}),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM", LLAMA, {**SILU, "use_bias": has("blk.0.attn_q.bias")}),
    "seed_oss": Architecture(
        "seed_oss", "SeedOssForCausalLM",
        {**TOP, **ATTENTION, **GATED, "post_attention_norm": "model.layers.{}.post_attention_layernorm"},
        {**SILU, **BIASES, "attention_out_bias": has("blk.0.attn_output.bias")},
    ),
    "exaone4": Architecture(
        "exaone4", "Exaone4ForCausalLM", {**TOP, **QKVO, **HEAD_NORMS, **BEHIND, **GATED},
        {**SILU, **_WINDOW, "layer_types": windows(4)},
    ),
    "phi3": Architecture(
        "phi3", "Phi3ForCausalLM",
        {**TOP, **FFN_NORM, "attn_norm": ATTENTION["attn_norm"], "attn_output": ATTENTION["attn_output"],
         "attn_qkv": "model.layers.{}.self_attn.qkv_proj", "ffn_up": "model.layers.{}.mlp.gate_up_proj", "ffn_down": UP_DOWN["ffn_down"]},
        {**SILU, **_WINDOW}, is_partly_rotary=True,
    ),
    "glm4": Architecture(
        "glm4", "Glm4ForCausalLM",
        {**TOP, **ATTENTION, **FFN_NORM, "ffn_up": "model.layers.{}.mlp.gate_up_proj", "ffn_down": UP_DOWN["ffn_down"],
         "post_attention_norm": "model.layers.{}.post_self_attn_layernorm", "post_ffw_norm": "model.layers.{}.post_mlp_layernorm"},
        {**SILU, **QKV_BIAS}, is_partly_rotary=True,
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
         "hidden_act": always("silu"), **QKV_BIAS},
    ),
    "cohere2": Architecture(
        "cohere2", "Cohere2ForCausalLM", {**TOP, **ATTENTION, **GATED},
        {"layer_norm_eps": LAYER_NORM, "logit_scale": real("logit_scale"), "hidden_act": always("silu"), **QKV_BIAS, **_WINDOW,
         "layer_types": windows(4)},
    ),
    "nemotron": Architecture(
        "nemotron", "NemotronForCausalLM", {**TOP, **ATTENTION, **FFN_NORM, **UP_DOWN},
        {"norm_eps": LAYER_NORM, "hidden_act": always("relu2"), **BIASES}, offset_norms=True, is_partly_rotary=True,
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
        _GPT2,
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
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM",
        {**LLAMA, "attn_q_norm": "model.layers.{}.self_attn.query_layernorm", "attn_k_norm": "model.layers.{}.self_attn.key_layernorm"},
        {**SILU, **QKV_BIAS},
    ),
    "apertus": Architecture(
        "apertus", "ApertusForCausalLM",
        {**TOP, **QKVO, **HEAD_NORMS, **UP_DOWN, "attn_norm": "model.layers.{}.attention_layernorm",
         "ffn_norm": "model.layers.{}.feedforward_layernorm"},
        {**RMS, **QKV_BIAS, "hidden_act": always("xielu")},
        from_metadata={
            f"model.layers.{{}}.mlp.act_fn.{name}": (f"xielu.{name}", axes)
            for name, axes in (("alpha_p", 1), ("alpha_n", 1), ("beta", 0), ("eps", 0))
        },
    ),
    "bitnet": Architecture(
        "bitnet", "BitNetForCausalLM",
        {**LLAMA, "attn_sub_norm": "model.layers.{}.self_attn.attn_sub_norm", "ffn_sub_norm": "model.layers.{}.mlp.ffn_sub_norm"},
        {**SILU, **QKV_BIAS},
    ),
    "starcoder": Architecture(
        "gpt_bigcode", "GPTBigCodeForCausalLM", _GPT2,
        {"layer_norm_epsilon": LAYER_NORM, "activation_function": always("gelu_pytorch_tanh"),
         "multi_query": lambda facts: facts.num_kv_heads == 1},
        is_rotary=False, renamed=_GPT2_FIELDS,
    ),
}  # fmt: skip
