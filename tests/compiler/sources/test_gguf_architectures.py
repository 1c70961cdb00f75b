"""Every architecture that is read: of a tiny model, as llama.cpp's converter writes it, transformers rebuilds one with the same logits.

Names come from the gguf package's own map; what the converter changes is written out here, after its sources
(https://github.com/ggml-org/llama.cpp/tree/master/conversion).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from cupola.compiler.sources import open_source
from cupola.compiler.sources.gguf_architectures import ARCHITECTURES, architecture_table
from cupola.runtime.errors import UnsupportedError
from tests.compiler.sources.gguf_files import (
    FACTORS,
    GRANITE,
    HALF,
    THETA,
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
from tests.compiler.sources.test_gguf_mixtures import MIXTURES
from tests.compiler.sources.test_gguf_recurrent import RECURRENT

WINDOW = {"sliding_window": 8}
PATTERN = ["sliding_attention", "full_attention", "sliding_attention"]
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 256}


def offset(name: str, values: Values, config: Any) -> Values:
    """Gemma and Nemotron: norms hold 1 more."""
    return values + 1 if name.endswith("norm.weight") else values


def joined(name: str, values: Values, config: Any) -> Values:
    """BLOOM and GPT-NeoX: q, k and v of all heads one after another."""
    if "query_key_value" not in name:
        return values
    heads = config.num_attention_heads
    return values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def grouped(name: str, values: Values, config: Any) -> Values:
    """Falcon: the q of all groups, then the k, then the v."""
    if "query_key_value" not in name:
        return values
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    by_group = values.reshape(groups, config.num_attention_heads // groups + 2, -1, *values.shape[1:])
    flat = (-1, *values.shape[1:])
    return np.concatenate([by_group[:, :-2].reshape(flat), by_group[:, -2].reshape(flat), by_group[:, -1].reshape(flat)])


def transposed(name: str, values: Values, config: Any) -> Values:
    """GPT-2: what it calls Conv1D."""
    return values.T if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else values


def minicpm(writer: Writer, config: Any) -> None:
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def gemma2(writer: Writer, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def windows(writer: Writer, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def cohere(writer: Writer, config: Any) -> None:
    writer.add_logit_scale(config.logit_scale)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if config.model_type == "cohere2":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_dimension_count(config.head_dim)


def parallel(writer: Writer, config: Any) -> None:
    half(writer, config)
    writer.add_parallel_residual(config.use_parallel_residual)


def gemma4(writer: Writer, config: Any) -> None:
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    layers = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
    full, window = layers[slides.index(False)], layers[slides.index(True)]
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(slides)
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_key_length_swa(window.head_dim)
    writer.add_value_length_swa(window.head_dim)
    writer.add_head_count_kv([layer.num_key_value_heads for layer in layers])
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(full.head_dim)
    writer.add_rope_dimension_count_swa(window.head_dim)
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * (full.head_dim // 8) + [1e30] * (full.head_dim * 3 // 8), np.float32))
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.use_double_wide_mlp:
        own = config.num_hidden_layers - config.num_kv_shared_layers
        writer.add_feed_forward_length([config.intermediate_size * (1 + (layer >= own)) for layer in range(config.num_hidden_layers)])


def scalars(name: str, values: Values, config: Any) -> Tensors:
    """Gemma 4's numbers without a module of their own, which the converter gives names."""
    layer = name.split(".")[2] if ".layers." in name else ""
    named = {
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "layer_scalar": "layer_output_scale.weight",
    }
    for end, part in named.items():
        if name.endswith(end):
            return {f"blk.{layer}.{part}": values}
    return {f"{name}.weight" if ".experts." in name else name: values}


def gemma3(writer: Writer, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)


def first_names(name: str, values: Values, config: Any) -> Tensors:
    """Those of the first BitNet's checkpoints, whose code is not transformers'."""
    return {name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): values}


def xielu(writer: Writer, config: Any) -> None:
    """The activation's numbers, which `tiny` moves away from where they begin, are no tensors."""
    model = tiny(CASES["apertus"])
    for name in ("alpha_p", "alpha_n", "beta", "eps"):
        getattr(writer, f"add_xielu_{name}")([getattr(layer.mlp.act_fn, name).item() for layer in model.model.layers])


EVERY = {"attention_bias": True, "mlp_bias": True}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA4 = {
    "sliding_window": 8, "global_head_dim": 32, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 96,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 50000.0},
    },
}  # fmt: skip
SHARED = ["sliding_attention", "full_attention"] * 2
CASES = {
    "llama": Case("llama", "llama", {**EVERY}, rotated),
    "internlm2": Case("internlm2", "llama", {"tie_word_embeddings": True}, rotated),
    "arcee": Case("arcee", "arcee", {}, rotated),
    "smollm3": Case("smollm3", "smollm3", {"num_hidden_layers": 5, "use_sliding_window": False}, rotated),
    "granite": Case("granite", "granite", GRANITE, rotated, scales),
    "minicpm": Case("minicpm", "granite", GRANITE | {"attention_multiplier": 0.25}, rotated, minicpm),
    "olmo": Case("olmo", "olmo", {"clip_qkv": 0.9}, rotated, lambda writer, config: writer.add_clamp_kqv(config.clip_qkv)),
    "olmo2": Case("olmo2", "olmo2"),
    "qwen2": Case("qwen2", "qwen2"),
    "qwen3": Case("qwen3", "qwen3"),
    "ernie4_5": Case("ernie4_5", "ernie4_5", {"use_bias": False}),
    "seed_oss": Case("seed_oss", "seed_oss", {"attention_bias": True, "attention_out_bias": False}),
    "exaone4": Case("exaone4", "exaone4", {**WINDOW, "layer_types": PATTERN}, keep, windows),
    "exaone4 whole": Case("exaone4", "exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "phi3": Case("phi3", "phi3", WINDOW, keep, window),
    "phi3 longrope": Case(
        "phi3", "phi3",
        {"sliding_window": None, "original_max_position_embeddings": 64,
         "rope_parameters": {"rope_type": "longrope", "rope_theta": 50000.0, "original_max_position_embeddings": 64, **FACTORS}},
        keep, longrope,
    ),
    "glm4": Case("glm4", "glm4", {**HALF, "attention_bias": True}, keep, half),
    "gemma": Case("gemma", "gemma", {}, offset),
    "gemma2": Case("gemma2", "gemma2", {**WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}, offset, gemma2),
    "gemma3": Case(
        "gemma3", "gemma3_text",
        {**WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE}, offset,
        lambda writer, config: (gemma3(writer, config), writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR),
                                writer.add_rope_scaling_factor(8.0)),
    ),
    "gemma4": Case("gemma4", "gemma4_text", GEMMA4, keep, gemma4, scalars),
    "gemma4 shared": Case(
        "gemma4", "gemma4_text",
        {**GEMMA4, "hidden_size_per_layer_input": 8, "num_hidden_layers": 4, "layer_types": SHARED, "num_kv_shared_layers": 2,
         "use_double_wide_mlp": True, "final_logit_softcapping": 30.0}, keep, gemma4, scalars,
    ),
    "gemma4 experts": Case(
        "gemma4", "gemma4_text",
        {**GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32, "attention_k_eq_v": True,
         "num_global_key_value_heads": 1}, keep, gemma4, scalars,
    ),
    "command-r": Case("command-r", "cohere", {"logit_scale": 0.3, "use_qk_norm": True}, keep, cohere),
    "cohere2": Case("cohere2", "cohere2", {"logit_scale": 0.3, **WINDOW, "num_hidden_layers": 5}, keep, cohere),
    "nemotron": Case("nemotron", "nemotron", HALF, offset, half),
    "starcoder2": Case("starcoder2", "starcoder2", {"sliding_window": None, "use_bias": True}),
    "hunyuan-dense": Case("hunyuan-dense", "hunyuan_v1_dense"),
    "apertus": Case("apertus", "apertus", THETA, keep, xielu, lambda name, values, config: {} if ".act_fn." in name else {name: values}),
    "bitnet": Case("bitnet", "bitnet", {"hidden_act": "silu", "tie_word_embeddings": True}, split=first_names),
    "starcoder": Case("starcoder", "gpt_bigcode", {}, sizes=GPT2),
    "stablelm": Case("stablelm", "stablelm", {**HALF, "use_qkv_bias": True, "use_parallel_residual": False}, keep, parallel),
    "stablelm parallel": Case("stablelm", "stablelm", {**HALF, "use_parallel_residual": True}, keep, parallel),
    "phi2": Case("phi2", "phi", {**HALF, "num_key_value_heads": 4}, keep, half),
    "falcon": Case("falcon", "falcon", {"ffn_hidden_size": 96}, grouped),
    "falcon 40b": Case("falcon", "falcon", {"ffn_hidden_size": 96, "new_decoder_architecture": True, "num_kv_heads": 2}, grouped),
    "falcon 11b": Case(
        "falcon", "falcon",
        {"ffn_hidden_size": 96, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}, grouped,
    ),
    "gptneox": Case("gptneox", "gpt_neox", {**HALF, "use_parallel_residual": False}, joined, parallel),
    "bloom": Case("bloom", "bloom", {"n_layer": 2, "n_head": 4}, joined, sizes={"vocab_size": 96, "hidden_size": 64}),
    "gpt2": Case("gpt2", "gpt2", {}, transposed, sizes=GPT2),
    "mpt": Case(
        "mpt", "mpt", {"attn_config": {"alibi": True, "alibi_bias_max": 4, "clip_qkv": 0.8}}, keep,
        lambda writer, config: (writer.add_max_alibi_bias(4.0), writer.add_clamp_kqv(0.8)),
        sizes={"vocab_size": 96, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_transformers_rebuilds_the_model(name: str, tmp_path: Path) -> None:
    assert_rebuilt(CASES[name], tmp_path / "tiny.gguf")


def test_the_documentation_lists_every_architecture() -> None:
    text = (Path(__file__).parents[3] / "docs/gguf.md").read_text(encoding="utf-8")
    rows = [f"| `{name}` | `{model_type}` | {model_class} |" for name, model_type, model_class in architecture_table()]
    assert re.findall(r"^\| `.*\|$", text, re.MULTILINE) == rows, "write this instead:\n" + "\n".join(rows)


def test_every_variant_has_a_case() -> None:
    cases = (*CASES.values(), *MIXTURES.values(), *RECURRENT.values())
    assert {(case.architecture, case.model_type) for case in cases} == {row[:2] for row in architecture_table()}


NEWER = {"ffn_gate_up_exps"}  # parts that newer files may have, of any architecture with experts


def test_every_architecture_is_one_of_the_gguf_package() -> None:
    for name, architecture in ARCHITECTURES.items():
        kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
        parts = {gguf.TENSOR_NAMES[tensor].removeprefix("blk.{bid}.") for tensor in gguf.MODEL_TENSORS[kind]}
        named = {each.removesuffix(".scale") for each in architecture.names_in(architecture.names_with)}
        assert named <= parts | {"output", *NEWER}, name


def test_blocks_move_with_their_rows(tmp_path: Path) -> None:
    case = CASES["gptneox"]
    model = tiny(case)
    path = write(tmp_path / "tiny.gguf", case, model, quantized=("attn_qkv.weight",))
    tensor = open_source(path).tensors["gpt_neox.layers.1.attention.query_key_value.weight"]
    assert tensor.blocks is not None and tensor.stored_as == "Q8_0"
    np.testing.assert_array_equal(tensor.blocks().values(), tensor.load())
    original = model.gpt_neox.layers[1].attention.query_key_value.weight.detach().numpy()
    np.testing.assert_allclose(tensor.load(), original, atol=2e-3)


def test_a_transposed_matrix_keeps_its_blocks(tmp_path: Path) -> None:
    case = CASES["gpt2"]
    model = tiny(case)
    tensor = open_source(write(tmp_path / "tiny.gguf", case, model, quantized=("ffn_up.weight",))).tensors[
        "transformer.h.0.mlp.c_fc.weight"
    ]
    original = model.transformer.h[0].mlp.c_fc.weight.detach().numpy()
    assert tensor.shape == original.shape and tensor.load().flags.c_contiguous
    np.testing.assert_allclose(tensor.load(), original, atol=2e-3)
    assert tensor.is_turned and tensor.blocks is not None
    np.testing.assert_array_equal(tensor.blocks().values().T, tensor.load())


@pytest.mark.parametrize(
    ("architecture", "extra", "message"),
    [
        ("stablelm", "blk.0.attn_q_norm.weight", r"blk\.0\.attn_q_norm\.weight: is a part that StableLmForCausalLM does not have here"),
        ("qwen3", "blk.0.ffn_gate_inp.weight", r"blk\.0\.ffn_gate_inp\.weight: is a part that"),
        ("bloom", "position_embd.weight", r"position_embd\.weight: is a part that BloomForCausalLM"),
    ],
)
def test_parts_that_the_class_lacks_are_refused(tmp_path: Path, architecture: str, extra: str, message: str) -> None:
    case = CASES[architecture]
    add = Case(
        **{**vars(case), "fields": lambda writer, config: (case.fields(writer, config), writer.add_tensor(extra, np.zeros((4, 16), "f")))}
    )
    with pytest.raises(UnsupportedError, match=message):
        open_source(write(tmp_path / "tiny.gguf", add, tiny(case)))


@pytest.mark.parametrize(
    ("kind", "architecture", "message"),
    [
        ("adapter", "llama", r"general\.type: is an adapter, such as LoRA's, and no model"),
        ("mmproj", "clip", r"general\.type: is the image part of a model"),
        ("imatrix", "llama", r"general\.type: holds statistics"),
        ("model", "bert", r"general\.architecture: 'bert' is an encoder, which makes embeddings and continues no text"),
        ("model", "openelm", r"general\.architecture: 'openelm' is an architecture that transformers has no class for"),
        ("model", "t5", r"general\.architecture: 't5' is not read from GGUF \(only llama, internlm2, "),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, kind: str, architecture: str, message: str) -> None:
    writer = Writer(tmp_path / "other.gguf", architecture)
    writer.add_type(kind)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=message):
        open_source(tmp_path / "other.gguf")
