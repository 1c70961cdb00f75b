"""Rotary frequencies that transformers chooses while a model runs, chosen once instead, for the context compiled for.

Which set is right depends on the longest position of a sequence, and one call holds tokens of many sequences. So
LongRoPE (Ding et al., 2024) takes its long factors if the context is longer than the original one, as vLLM does, and
dynamic NTK scaling, which starts beyond the limit of the configuration, never starts: no longer context compiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

_FIXED = "default"  # what transformers calls frequencies that never change


def fix_rope(model: nn.Module, context: int) -> tuple[str, ...]:
    """Makes the rotary embeddings of `model` independent of the input; returns notes for people."""
    notes: dict[str, None] = {}
    for module in model.modules():
        for layer_type, rope_type in _rope_types(module):
            if rope_type == "longrope":
                notes[_fix_longrope(module, layer_type, context)] = None
            if rope_type == "longrope" or "dynamic" in rope_type:
                _set_fixed(module, layer_type)
    return tuple(notes)


def _rope_types(module: Any) -> Iterator[tuple[str | None, str]]:
    """(layer type, kind of scaling) for each set of frequencies of a module; the layer type is None if there is only one."""
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, Mapping):
        yield from list(kinds.items())
    elif isinstance(kinds, str):
        yield None, kinds


def _fix_longrope(module: Any, layer_type: str | None, context: int) -> str:
    parameters = module.config.rope_parameters
    original = (parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"]
    prefix = "" if layer_type is None else f"{layer_type}_"
    more = {} if layer_type is None else {"layer_type": layer_type}
    # seq_len decides between the two sets of factors, and nothing else.
    frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](module.config, "cpu", seq_len=max(context, 1), **more)
    setattr(module, f"{prefix}inv_freq", frequencies)
    if context <= original:
        return f"positions are scaled for contexts of up to {original} tokens (LongRoPE's short factors)"
    return f"positions are scaled for more than {original} tokens (LongRoPE's long factors); context={original} takes the short ones"


def _set_fixed(module: Any, layer_type: str | None) -> None:
    module.rope_type = _FIXED if layer_type is None else {**module.rope_type, layer_type: _FIXED}
