"""Tiny models of architectures as GGUF files, written as llama.cpp's converter writes them, and what transformers makes of a source.

Names come from the gguf package's own map; what the converter changes is written out in the tests, after its sources
(https://github.com/ggml-org/llama.cpp/tree/master/conversion).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM

from cupola.compiler.sources import Naming, bind_weights, open_source
from cupola.compiler.sources.gguf_architectures import ARCHITECTURES
from tests.compiler.sources.conftest import to_llama_cpp

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "attention_dropout": 0.0,
}  # fmt: skip
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}}
GRANITE = {"attention_multiplier": 0.11, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_scaling": 2.5}
FACTORS = {"long_factor": [1.0 + index / 4 for index in range(8)], "short_factor": [1.0 + index / 16 for index in range(8)]}
Writer = gguf.GGUFWriter
Values = np.ndarray[Any, Any]
Tensors = dict[str, Values]


def keep(name: str, values: Values, config: Any) -> Values:
    return values


def whole(name: str, values: Values, config: Any) -> Tensors:
    return {name: values}


@dataclass(frozen=True)
class Case:
    """A tiny model of an architecture, what the converter does to its tensors, and what it writes beside the usual fields."""

    architecture: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    change: Callable[[str, Values, Any], Values] = keep
    fields: Callable[[Writer, Any], None] = lambda writer, config: None
    split: Callable[[str, Values, Any], Tensors] = whole  # into the tensors of checkpoints, whose names the map knows
    plain_fields: bool = True
    sizes: dict[str, Any] = field(default_factory=lambda: {**SIZES, **THETA})


def rotated(name: str, values: Values, config: Any) -> Values:
    """`LlamaModel.modify_tensors`: q and k, weights and biases."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return to_llama_cpp(values, heads) if heads else values


def scales(writer: Writer, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def window(writer: Writer, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window or 0)


def half(writer: Writer, config: Any) -> None:
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads // 2)


def longrope(writer: Writer, config: Any) -> None:
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(128 / 64) / np.log(64))))
    writer.add_sliding_window(0)
    for name in ("long", "short"):
        writer.add_tensor(f"rope_factors_{name}.weight", np.array(config.rope_parameters[f"{name}_factor"], np.float32))


def tiny(case: Case) -> Any:
    torch.manual_seed(0)
    sizes = {name: value for name, value in case.sizes.items() if (case.model_type, name) != ("falcon", "head_dim")}
    config = AutoConfig.for_model(case.model_type, **sizes | case.config)
    for name in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"):
        if hasattr(config, name):
            setattr(config, name, 3e-4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


def first(config: Any, *names: str) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)


def add_plain_fields(writer: Writer, case: Case, config: Any) -> None:
    """Those that `TextModel` of the converter writes for every model."""
    layers = first(config, "num_hidden_layers", "n_layer")
    heads, hidden = config.num_attention_heads, config.hidden_size
    falcon_groups = {True: first(config, "num_kv_heads"), False: 1, None: None}[getattr(config, "new_decoder_architecture", None)]
    writer.add_block_count(layers)
    writer.add_context_length(first(config, "max_position_embeddings", "seq_length", "n_positions", "max_seq_len") or 128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(first(config, "ffn_hidden_size", "intermediate_size", "n_inner") or 4 * hidden)
    writer.add_head_count(heads)
    if case.model_type != "gemma4_text" and (groups := falcon_groups or first(config, "num_key_value_heads")) is not None:
        writer.add_head_count_kv(groups)
    if case.model_type not in ("bloom", "mpt", "falcon", "gemma4_text") and getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if (eps := first(config, "rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(eps)
    elif case.model_type == "olmo":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_eps(first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"))
    if isinstance(rope := getattr(config, "rope_parameters", None), dict):
        writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    for name, add in (("num_local_experts", writer.add_expert_count), ("num_experts_per_tok", writer.add_expert_used_count)):
        if (count := first(config, name, "num_experts" if name == "num_local_experts" else name)) is not None:
            add(count)


def values_of(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of a model: parameters, and buffers that are saved."""
    saved = model.state_dict().keys()
    return dict(model.named_parameters()) | {name: value for name, value in model.named_buffers() if name in saved}


def tensors_of(case: Case, model: Any) -> Tensors:
    """The tensors of a model as the file has them, by its names."""
    layers = first(model.config, "num_hidden_layers", "n_layer")
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == case.architecture)), layers)
    tensors = {}
    for name, parameter in values_of(model).items():
        plain = name.removeprefix("transformer.") if case.model_type == "bloom" else name
        changed = case.change(name, parameter.detach().numpy(), model.config)
        for part, values in case.split(plain, changed, model.config).items():
            stored = part if part.startswith("blk.") else known.get_name(part, try_suffixes=(".weight", ".bias"))
            assert stored is not None, part
            tensors[stored] = np.ascontiguousarray(values, np.float32)
    return tensors


def write(
    path: Path, case: Case, model: Any, quantized: tuple[str, ...] = (), kind: Kind = Kind.Q8_0, drop: Callable[[Tensors], Tensors] = dict
) -> Path:
    """As the converter writes a model, with what the case adds; tensors whose names end so in `kind`; `drop` changes which there are."""
    writer = Writer(path, case.architecture)
    if case.plain_fields:
        add_plain_fields(writer, case, model.config)
    case.fields(writer, model.config)
    for name, values in drop(tensors_of(case, model)).items():
        stored = kind if quantized and name.endswith(quantized) else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rebuilt(source: Any) -> Any:
    """The model that transformers makes of a source."""
    content = dict(source.config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content), dtype=torch.float32).eval()
    tied = model.all_tied_weights_keys
    values = values_of(model)
    parameters = {name: tuple(value.shape) for name, value in values.items()}
    bound = bind_weights(source, parameters, Naming.of(model), tied)
    with torch.no_grad():
        for name, value in values.items():
            value.copy_(torch.from_numpy(np.array(bound[name].load(), np.float32)))
    assert {tensor.name for tensor in bound.values()} == source.tensors.keys()
    return model


def assert_rebuilt(case: Case, path: Path) -> None:
    """Writes a tiny model, and holds the logits of the one that transformers makes of the file against it."""
    model = tiny(case)
    source = open_source(write(path, case, model))
    assert source.notes[:-1] == ARCHITECTURES[case.architecture].notes
    tokens = torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(tokens).logits, rebuilt(source)(tokens).logits
    assert expected.std() > 1e-2
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
