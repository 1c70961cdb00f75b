"""Recurrences as the importer catches them: opaque markers in the traced graph, in the place of functions of transformers' modeling files.

Those files look the functions up by name as they run: convolutions over tokens, scans, delta rules. So the names stand for the markers
while a model is traced. What surrounds a recurrence and treats tokens one by one, such as gates, norms and scales, stays traced code.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from cupola.compiler.frontend.attention import UNNUMBERED
from cupola.runtime.errors import UnsupportedError

_TRACING_ONLY = "recurrences are for tracing only"


@torch.library.custom_op("cupola::causal_conv", mutates_args=())
def causal_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: int) -> torch.Tensor:
    """The marker of `ops.CausalConv`: x [1, n, C], weight [C, W], bias [C] -> [1, n, C]."""
    raise AssertionError(_TRACING_ONLY)


@causal_conv.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: int) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


MARKERS = (causal_conv,)


def _refuse(others: Mapping[str, Any], what: str) -> None:
    """Raises UnsupportedError for an argument that changes the result and that no marker takes."""
    for name, value in others.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise UnsupportedError(f"its {what} takes {name}, which no kernel of cupola knows")


# What models hand on, and what changes nothing: sequences are told apart by the runtime, and states are its own.
_HARMLESS = {"position_ids", "cache_position", "output_attentions", "output_hidden_states", "use_cache", "chunk_size"}


def _causal_conv1d(hidden_states: Any, weight: Any, bias: Any = None, activation: str | None = None, **_others: Any) -> Any:
    _refuse(_others, "convolution")
    out = causal_conv(hidden_states.transpose(1, 2), weight, bias, UNNUMBERED).transpose(1, 2)
    return out if activation is None else ACT2FN[activation](out)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _causal_conv1d,
}
"""What stands for functions of modeling files, by their names."""


@contextlib.contextmanager
def marked_recurrences(model: torch.nn.Module) -> Iterator[None]:
    """Within the context, the modeling files of a model's modules call markers."""
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    replaced = [(file, name, getattr(file, name)) for file in files for name in FUNCTIONS if hasattr(file, name)]
    for file, name, _ in replaced:
        setattr(file, name, FUNCTIONS[name])
    try:
        yield
    finally:
        for file, name, function in replaced:
            setattr(file, name, function)


__all__ = ["MARKERS", "causal_conv", "functional", "marked_recurrences"]
