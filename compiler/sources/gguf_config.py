"""From a GGUF file's metadata to the content of transformers' `config.json`.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the file says about the model is
never left to a configuration class's default, which is one checkpoint's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.gguf_header import RECONVERT, USE_CHECKPOINT, GGUFHeader
from cupola.compiler.sources.gguf_metadata import Metadata
from cupola.compiler.sources.gguf_rope import llama3_parameters, scaling_parameters
from cupola.runtime.errors import SourceError, UnsupportedError

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""The architectures that are read: their GGUF name, which is transformers' model type too -> the model's class."""


def architecture_of(header: GGUFHeader) -> str:
    """The file's architecture, if it is one that is read here; UnsupportedError otherwise."""
    architecture = header.metadata.get("general.architecture")
    field = "general.architecture"
    if not isinstance(architecture, str):
        raise SourceError("is missing", file=header.path, field=field, fix=RECONVERT)
    if architecture not in CLASSES:
        known = ", ".join(CLASSES)
        raise UnsupportedError(
            f"{architecture!r:.60} is not read from GGUF (only {known})", file=header.path, field=field, fix=USE_CHECKPOINT
        )
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedError(
            "is a model split into several files", file=header.path, field="split.count", fix="merge it with llama.cpp's gguf-split"
        )
    return architecture


def _head_dim(read: Metadata, hidden_size: int, num_heads: int) -> int:
    head_dim = read.integer("attention.key_length", hidden_size // num_heads)
    if head_dim < 2 or head_dim % 2:
        read.fail("attention.key_length", f"the head size is {head_dim}, not a positive even number")
    for key in ("attention.value_length", "rope.dimension_count"):
        if read.integer(key, head_dim) != head_dim:
            read.refuse(key, f"differs from the head size, {head_dim}")
    return head_dim


def _vocab_size(header: GGUFHeader) -> int:
    shape = next((info.shape for info in header.tensors if info.name == "token_embd.weight"), ())
    if len(shape) != 2:
        raise SourceError("is missing or not a matrix", file=header.path, field="token_embd.weight", fix=RECONVERT)
    return shape[0]


def derive_config(header: GGUFHeader, values_of: Callable[[str], Array]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The content of `config.json` for a file of a known architecture, and notes for people.

    Args:
        header: the checked header.
        values_of: reads a tensor by its name in the file; only `rope_freqs.weight` is asked for.

    Raises:
        SourceError: a field is missing or of the wrong type.
        UnsupportedError: the file asks for something that the architecture's transformers class does not have, or states
            something that is not read here and may change what the model computes.
    """
    architecture = architecture_of(header)
    read = Metadata(header, architecture)
    names = {info.name for info in header.tensors}
    hidden_size, num_heads = read.integer("embedding_length"), read.integer("attention.head_count")
    if num_heads < 1:
        read.fail("attention.head_count", f"is {num_heads}, not a whole number from 1")
    head_dim = _head_dim(read, hidden_size, num_heads)
    theta = read.real("rope.freq_base", 10000.0)
    rope = {"rope_theta": theta, **scaling_parameters(read)}
    if "rope_freqs.weight" in names:
        if rope["rope_type"] != "default":
            read.refuse("rope.scaling.factor", "comes with rope_freqs.weight, which scales rotary frequencies too")
        rope = llama3_parameters(values_of("rope_freqs.weight"), theta, head_dim, header.path)
    config = {
        "model_type": architecture,
        "architectures": [CLASSES[architecture]],
        "vocab_size": _vocab_size(header),
        "hidden_size": hidden_size,
        "intermediate_size": read.integer("feed_forward_length"),
        "num_hidden_layers": read.integer("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": read.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": read.integer("context_length"),
        "rms_norm_eps": read.real("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in names,
        **_biases(architecture, names),
        **_token_ids(header.metadata),
    }
    return config, read.check_all_read()


def _biases(architecture: str, names: set[str]) -> dict[str, bool]:
    """Which projections have a bias, as far as the class leaves it open (qwen2 always has one on q, k and v)."""
    found = {"attention_bias": "blk.0.attn_q.bias" in names, "mlp_bias": "blk.0.ffn_up.bias" in names}
    return {"llama": found, "qwen3": {"attention_bias": found["attention_bias"]}}.get(architecture, {})


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    found = {field: metadata.get(f"tokenizer.ggml.{key}") for field, key in keys.items()}
    return {field: value for field, value in found.items() if isinstance(value, int)}
