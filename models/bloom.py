"""BLOOM. Its attention computes ALiBi scores by itself, so its attention module gets a forward that calls the marker."""

from __future__ import annotations

import types
from typing import Any

from cupola.models.family import AttentionMarker, Family


def use_marker(model: Any, attention: AttentionMarker) -> None:
    """Replaces the scores, softmax and weighting of every attention module; projections stay the model's own."""
    from transformers.models.bloom.modeling_bloom import _get_alibi_slopes

    for block in model.transformer.h:
        module = block.self_attention
        module.register_buffer("alibi_slopes", _get_alibi_slopes(module.num_heads, device="cpu"), persistent=False)
        module.forward = types.MethodType(_forward(attention), module)


def _forward(attention: AttentionMarker) -> Any:
    def forward(self: Any, hidden_states: Any, residual: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        out = attention(query, key, value, self.alibi_slopes, None, self.layer_idx, self.inv_norm_factor, 0, 0.0)
        return residual + self.dense(out.flatten(2)), None

    return forward


FAMILY = Family(
    model_type="bloom",
    title="BLOOM",
    tiny={
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 256,
    },
    adapt=use_marker,
)
