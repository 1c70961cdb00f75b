"""Rotary-embedding settings of a GGUF file, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.gguf_facts import Facts, Rule
from cupola.compiler.sources.gguf_header import USE_CHECKPOINT
from cupola.compiler.sources.gguf_metadata import Metadata
from cupola.runtime.errors import UnsupportedError

_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0
_LLAMA3_CONTEXTS = (8192, 4096, 2048, 16384, 32768)


def _llama3_factors(theta: float, head_dim: int, factor: float, context: int) -> Array:
    """By how much Llama 3's scaling divides each rotary frequency: float64 [head_dim / 2]."""
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = context * frequencies / (2 * math.pi)
    smooth = np.clip((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
    factors: Array = 1 / ((1 - smooth) / factor + smooth)
    return factors


def llama3_parameters(factors: Array, theta: float, head_dim: int, file: object) -> dict[str, Any]:
    """The settings from which llama.cpp computed the tensor `rope_freqs.weight`, f32 [head_dim / 2].

    The file keeps the result and not the settings. Llama 3's two thresholds are the same in every release, its factor
    is the tensor's largest value, and the settings are taken only if they give the tensor back.

    Raises:
        UnsupportedError: no known settings give this tensor.
    """
    factor = float(np.max(factors))
    for context in _LLAMA3_CONTEXTS:
        if factors.shape == (head_dim // 2,) and np.allclose(_llama3_factors(theta, head_dim, factor, context), factors, rtol=1e-4):
            scaling = {"low_freq_factor": _LLAMA3_LOW, "high_freq_factor": _LLAMA3_HIGH, "original_max_position_embeddings": context}
            return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **scaling}
    raise UnsupportedError("scales rotary frequencies in an unknown way", file=file, field="rope_freqs.weight", fix=USE_CHECKPOINT)


def _yarn(read: Metadata, factor: float) -> dict[str, Any]:
    optional = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": read.integer("rope.scaling.original_context_length", read.integer("context_length")),
        **{name: read.real(key) for name, key in optional.items() if read.value(key) is not None},
    }


_KINDS: dict[str, Callable[[Metadata, float], dict[str, Any]]] = {
    "none": lambda read, factor: {"rope_type": "default"},
    "linear": lambda read, factor: {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"},
    "yarn": _yarn,
}


def scaling_parameters(read: Metadata) -> dict[str, Any]:
    """`rope_parameters` from the metadata `rope.scaling.*` and, of old files, `rope.scale_linear`.

    As llama.cpp takes them: scaling is linear where no type is stated, and a factor of 0 is none.

    Raises:
        SourceError: a field that has not its type.
        UnsupportedError: a kind of scaling that is not one of those above.
    """
    kind, factors = read.value("rope.scaling.type"), ("rope.scaling.factor", "rope.scale_linear")
    stated = [key for key in factors if read.value(key) is not None][:1]
    factor = next((read.real(key) for key in stated if read.value(key) != 0), 1.0)
    kind = "linear" if kind is None else kind
    if not isinstance(kind, str) or kind not in _KINDS:
        read.refuse("rope.scaling.type", f"{kind!r:.40} is not a scaling that is read here")
    if kind != "yarn":
        read.value("rope.scaling.original_context_length")  # only that kind goes by it
    return _KINDS[kind](read, factor)


def rope_parameters(facts: Facts, further: Mapping[str, Mapping[str, Rule]]) -> dict[str, Any]:
    """All settings of a model's rotary embeddings; by kind of layer where windows have a base of their own, as in Gemma 3.

    Args:
        facts: of the file.
        further: its architecture's further settings, by kind of scaling.

    Raises:
        SourceError, UnsupportedError: as `scaling_parameters` and `llama3_parameters`.
    """
    read, theta = facts.read, facts.read.real("rope.freq_base", 10000.0)
    part = {"partial_rotary_factor": facts.rotary_dim / facts.head_dim} if facts.rotary_dim != facts.head_dim else {}
    rope = _longrope(facts) if "rope_factors_long.weight" in facts.tensors else scaling_parameters(read)
    if "rope_freqs.weight" in facts.tensors:
        if rope["rope_type"] != "default":
            read.refuse("rope.scaling.factor", "comes with rope_freqs.weight, which scales rotary frequencies too")
        rope = llama3_parameters(facts.values_of("rope_freqs.weight"), theta, facts.rotary_dim, read.header.path)
    whole = {"rope_theta": theta, **rope, **part, **{name: rule(facts) for name, rule in further.get(rope["rope_type"], {}).items()}}
    if read.architecture != "gemma3":
        return whole
    local = {"rope_type": "default", "rope_theta": read.real("rope.freq_base_swa", 10000.0)}
    return {"full_attention": whole, "sliding_attention": local}


def _longrope(facts: Facts) -> dict[str, Any]:
    """LongRoPE's two sets of factors, which lie in tensors, and the factor of attention that the file states."""
    read = facts.read
    if read.value("rope.scaling.type") not in (None, "longrope", "none"):
        read.refuse("rope.scaling.type", f"{read.value('rope.scaling.type')!r:.40} comes with factors of LongRoPE")
    attention = read.value("rope.scaling.attn_factor")
    return {
        "rope_type": "longrope",
        "long_factor": facts.values_of("rope_factors_long.weight").tolist(),
        "short_factor": facts.values_of("rope_factors_short.weight").tolist(),
        "original_max_position_embeddings": read.integer("rope.scaling.original_context_length"),
        **({"attention_factor": read.real("rope.scaling.attn_factor")} if attention else {}),
    }
