"""OpenAI GPT. It multiplies its scores by a triangle, so scores, softmax and weighting of each module become the marker."""

from __future__ import annotations

import math
from typing import Any

from cupola.models.family import AttentionMarker, Family


def use_marker(model: Any, attention: AttentionMarker) -> None:
    """Replaces `_attn` of every attention module; projections stay the model's own."""
    for block in model.transformer.h:
        block.attn._attn = _scores_by_marker(attention, block.attn.scale)


def _scores_by_marker(attention: AttentionMarker, is_scaled: bool) -> Any:
    """q [1, H, n, D], k [1, H, D, n], v [1, H, n, D] -> [1, H, n, D] in a list, as weights may follow it.

    The model gives later tokens a score of -1e4 instead of none: beside scores of any usual size both weigh exactly 0.
    """

    def attend(query: Any, key: Any, value: Any, _mask: Any = None, _with_weights: bool = False) -> list[Any]:
        scale = 1 / math.sqrt(query.shape[-1]) if is_scaled else 1.0
        return [attention(query, key.transpose(2, 3), value, None, None, 0, scale, 0, 0.0).transpose(1, 2)]

    return attend


FAMILY = Family(
    model_type="openai-gpt",
    title="OpenAI GPT",
    tiny={
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 256,
        "n_positions": 256,
    },
    attention="eager",
    adapt=use_marker,
)
