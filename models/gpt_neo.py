"""GPT-Neo: every other layer sees a window, and scores are not scaled."""

from __future__ import annotations

from typing import Any

from cupola.models.family import AttentionMarker, Family
from cupola.models.gptj import scores_by_marker


def use_marker(model: Any, attention: AttentionMarker) -> None:
    """Replaces `_attn` of every attention module; the mask of its buffer becomes a window."""
    for block, kind in zip(model.transformer.h, model.config.attention_layers, strict=True):
        block.attn.attention._attn = scores_by_marker(attention, 1.0, model.config.window_size if kind == "local" else 0)


FAMILY = Family(
    model_type="gpt_neo",
    title="GPT-Neo",
    tiny={
        "hidden_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    attention="eager",
    adapt=use_marker,
)
