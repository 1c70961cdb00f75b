"""Rotary-embedding settings of a GGUF file, as transformers' `rope_parameters`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.gguf_header import USE_CHECKPOINT
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


def _linear(read: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_type": "linear", "factor": read["factor"]}


def _yarn(read: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": read["factor"], "original_max_position_embeddings": read["original_context_length"]}


_KINDS = {"none": lambda read: {"rope_type": "default"}, "linear": _linear, "yarn": _yarn}


def scaling_parameters(metadata: Mapping[str, Any], architecture: str, theta: float, file: object) -> dict[str, Any]:
    """`rope_parameters` from the `{architecture}.rope.scaling.*` metadata.

    Raises:
        UnsupportedError: a kind of scaling that is not one of those above, or with further settings.
    """
    prefix = f"{architecture}.rope.scaling."
    read = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    kind = read.pop("type", "none")
    read.pop("finetuned", None)
    extra = sorted(read.keys() - {"factor", "original_context_length"})
    needed = {"linear": {"factor"}, "yarn": {"factor", "original_context_length"}}.get(str(kind), set())
    if str(kind) not in _KINDS or extra or not needed <= read.keys():
        field = f"{prefix}{extra[0] if extra else 'type'}"
        raise UnsupportedError(
            f"{read.get(extra[0]) if extra else kind!r} is not a scaling that is read here", file=file, field=field, fix=USE_CHECKPOINT
        )
    return {"rope_theta": theta, **_KINDS[str(kind)](read)}
