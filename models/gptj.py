"""GPT-J. Its classes of attention are a closed set, so scores, softmax and weighting of each module become the marker."""

from __future__ import annotations

from typing import Any

from cupola.models.family import AttentionMarker, Family


def use_marker(model: Any, attention: AttentionMarker) -> None:
    """Replaces `_attn` of every attention module; projections and rotations stay the model's own."""
    for block in model.transformer.h:
        module = block.attn
        module._attn = scores_by_marker(attention, 1 / float(module.scale_attn))


def scores_by_marker(attention: AttentionMarker, scale: float, window: int = 0) -> Any:
    """A replacement for the `_attn` of GPT-J, CodeGen and GPT-Neo: q, k, v [1, H, n, D] -> [1, H, n, D] and no weights."""

    def attend(query: Any, key: Any, value: Any, _mask: Any = None) -> tuple[Any, None]:
        return attention(query, key, value, None, None, 0, scale, window, 0.0).transpose(1, 2), None

    return attend


FAMILY = Family(
    model_type="gptj",
    title="GPT-J",
    tiny={
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 8,
        "vocab_size": 256,
        "n_positions": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    attention="eager",
    adapt=use_marker,
)
