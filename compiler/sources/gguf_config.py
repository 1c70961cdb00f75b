"""From a GGUF file's metadata to the content of transformers' `config.json`.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What the file says about the model is
never left to a configuration class's default, which is one checkpoint's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.gguf_architecture import Architecture
from cupola.compiler.sources.gguf_architectures import ARCHITECTURES
from cupola.compiler.sources.gguf_facts import Facts
from cupola.compiler.sources.gguf_header import RECONVERT, USE_CHECKPOINT, GGUFHeader
from cupola.compiler.sources.gguf_metadata import Metadata
from cupola.compiler.sources.gguf_rope import rope_parameters
from cupola.runtime.errors import SourceError, UnsupportedError

_OTHER_KINDS = {
    "adapter": ("is an adapter, such as LoRA's, and no model", "merge it into its model, and convert that"),
    "mmproj": ("is the image part of a model, without its text model", "give the file of the text model"),
    "imatrix": ("holds statistics for quantizing, and no model", "give the file of the model"),
    "vocab": ("is a vocabulary alone", "give the file of the model"),
}
"""Values of `general.type` that are no language models -> what such a file is, and what to do."""
_ENCODERS = ("bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "eurobert", "t5encoder",
             "gemma-embedding", "llama-embed")  # fmt: skip

_WITHOUT_CLASS = ("arctic", "baichuan", "bailingmoe", "chatglm", "codeshell", "deepseek", "dream", "exaone", "grok", "grovemoe", "llada",
                  "llada-moe", "openelm", "orion", "plamo", "plamo2", "plamo3", "plm", "qwen", "refact", "rwkv6", "rwkv7", "smallthinker",
                  "xverse")  # fmt: skip
"""Architectures that transformers has no class for."""

_MOST_LAYERS = 1 << 12


def architecture_of(header: GGUFHeader) -> str:
    """The file's architecture, if it is one that is read here.

    Raises:
        SourceError: it is missing.
        UnsupportedError: it is not read, or the file is no causal language model.
    """
    kind = header.metadata.get("general.type")
    if isinstance(kind, str) and kind in _OTHER_KINDS:
        problem, fix = _OTHER_KINDS[kind]
        raise UnsupportedError(problem, file=header.path, field="general.type", fix=fix)
    architecture = header.metadata.get("general.architecture")
    field = "general.architecture"
    if not isinstance(architecture, str):
        raise SourceError("is missing", file=header.path, field=field, fix=RECONVERT)
    if architecture in _ENCODERS:
        problem = f"{architecture!r} is an encoder, which makes embeddings and continues no text"
        raise UnsupportedError(problem, file=header.path, field=field, fix="give a model that continues text")
    if architecture in _WITHOUT_CLASS:
        problem = f"{architecture!r} is an architecture that transformers has no class for"
        raise UnsupportedError(problem, file=header.path, field=field, fix="give another model")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedError(
            f"{architecture!r:.60} is not read from GGUF (only {known})", file=header.path, field=field, fix=USE_CHECKPOINT
        )
    return architecture


def architecture_in(header: GGUFHeader) -> Architecture:
    """The architecture of a file, or its variant; raises what `architecture_of` does."""
    name = architecture_of(header)
    own = {key.removeprefix(f"{name}."): value for key, value in header.metadata.items() if key.startswith(f"{name}.")}
    return ARCHITECTURES[name].of(own)


def _head_dim(read: Metadata, architecture: Architecture, hidden_size: int, num_heads: int) -> tuple[int, int]:
    """The head size, and how much of it rotary embeddings turn."""
    if architecture.is_latent:
        return (rotary_dim := read.integer("rope.dimension_count")), rotary_dim
    head_dim = read.integer("attention.key_length", hidden_size // num_heads)
    if head_dim < 2 or head_dim % 2:
        read.fail("attention.key_length", f"the head size is {head_dim}, not a positive even number")
    if read.integer("attention.value_length", head_dim) != head_dim:
        read.refuse("attention.value_length", f"differs from the head size, {head_dim}")
    rotary_dim = read.integer("rope.dimension_count", head_dim)
    if not architecture.is_rotary:
        return head_dim, head_dim
    if rotary_dim != head_dim and not architecture.is_partly_rotary:
        read.refuse("rope.dimension_count", f"differs from the head size, {head_dim}")
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        read.fail("rope.dimension_count", f"is {rotary_dim}, not an even number up to the head size, {head_dim}")
    return head_dim, rotary_dim


def _check_expected(read: Metadata, architecture: Architecture) -> None:
    """Raises UnsupportedError about a key that says something else than what the class does."""
    for key, allowed in architecture.expected.items():
        value = read.value(key)
        if value is not None and allowed and value not in allowed:
            read.refuse(key, f"is {value!r:.40}, and {architecture.model_class} does what {allowed[-1]!r} says")


def _vocab_size(header: GGUFHeader) -> int:
    shape = next((info.shape for info in header.tensors if info.name == "token_embd.weight"), ())
    if len(shape) != 2:
        raise SourceError("is missing or not a matrix", file=header.path, field="token_embd.weight", fix=RECONVERT)
    return shape[0]


def _heads(read: Metadata, architecture: Architecture, hidden_size: int) -> tuple[int, int, int]:
    """The number of heads, their size, and how much of it rotary embeddings turn; 0 for all without attention."""
    if not architecture.has_heads:
        read.value("attention.head_count")
        return 0, 0, 0
    num_heads = read.integer("attention.head_count")
    if num_heads < 1:
        read.fail("attention.head_count", f"is {num_heads}, not a whole number from 1")
    return num_heads, *_head_dim(read, architecture, hidden_size, num_heads)


def _facts(header: GGUFHeader, architecture: Architecture, name: str, values_of: Callable[[str], Array]) -> Facts:
    read = Metadata(header, name)
    hidden_size = read.integer("embedding_length")
    num_heads, head_dim, rotary_dim = _heads(read, architecture, hidden_size)
    num_blocks, further = read.integer("block_count"), read.integer("nextn_predict_layers", 0)
    if not 0 <= num_blocks <= _MOST_LAYERS:
        read.fail("block_count", f"is {num_blocks}, not a whole number from 1 to {_MOST_LAYERS}")
    kv_heads = read.integers("attention.head_count_kv", num_blocks, num_heads)
    return Facts(
        read=read,
        tensors=frozenset(info.name for info in header.tensors),
        values_of=values_of,
        hidden_size=hidden_size,
        num_layers=num_blocks - further,
        num_heads=num_heads,
        num_kv_heads=max(kv_heads, default=num_heads),
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        kv_heads=kv_heads[: num_blocks - further],
        widths=read.integers("feed_forward_length", num_blocks)[: num_blocks - further],
    )


def derive_config(header: GGUFHeader, values_of: Callable[[str], Array]) -> tuple[dict[str, Any], Facts, tuple[str, ...]]:
    """The content of `config.json` for a file of a known architecture, what it was made of, and notes for people.

    Args:
        header: the checked header.
        values_of: reads a tensor by its name in the file; only factors of rotary frequencies are asked for.

    Raises:
        SourceError: a field is missing or of the wrong type.
        UnsupportedError: the file asks for something that the architecture's transformers class does not have, or states
            something that is not read here and may change what the model computes.
    """
    name = architecture_of(header)
    architecture = architecture_in(header)
    facts = _facts(header, architecture, name, values_of)
    _check_expected(facts.read, architecture)
    usual = {
        "hidden_size": facts.hidden_size,
        "intermediate_size": max(facts.widths, default=0),
        "num_hidden_layers": facts.num_layers,
        "num_attention_heads": facts.num_heads,
        "num_key_value_heads": facts.num_kv_heads,
        "head_dim": facts.head_dim,
        "max_position_embeddings": facts.read.integer("context_length"),
    }
    named = {architecture.renamed.get(field, field): value for field, value in usual.items()}
    config = {
        "model_type": architecture.model_type,
        "architectures": [architecture.model_class],
        "vocab_size": _vocab_size(header),
        **{field: value for field, value in named.items() if field is not None},
        "tie_word_embeddings": "output.weight" not in facts.tensors,
        **({"rope_parameters": rope_parameters(facts, architecture.rope)} if architecture.is_rotary else {}),
        **{field: rule(facts) for field, rule in architecture.config.items()},
        **_token_ids(header.metadata),
    }
    return config, facts, (*facts.read.check_all_read(), *architecture.notes)


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, int | None]:
    """The file's tokens; None for one that it does not name, or a class would take its own checkpoint's."""
    keys = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    found = {field: metadata.get(f"tokenizer.ggml.{key}") for field, key in keys.items()}
    return {field: value if isinstance(value, int) else None for field, value in found.items()}
