"""The interface of a model family: it tells the compiler only what tracing cannot know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# The importer's attention marker as a torch function:
# attention(q [1,H,n,D], k [1,G,n,D], v [1,G,n,E], slopes [H] or None, sinks [H] or None, layer, scale, window, softcap) -> [1,n,H,E]
AttentionMarker = Callable[..., Any]
# The small random model that most families are verified on, in the words of most configurations.
SMALL: Mapping[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Family:
    """A model family of transformers.

    Attributes:
        model_type: transformers' name for it, as in `config.json`.
        title: its name for people.
        tiny: the configuration of a small random model, on which the family is verified.
        attention: the attention implementation to trace under: the importer's own, or "sdpa" for a family that
            calls torch's scaled_dot_product_attention by itself.
        adapt: called with the model and the marker before tracing, for families whose attention goes through neither.
    """

    model_type: str
    title: str
    tiny: Mapping[str, object]
    attention: str = "cupola"
    adapt: Callable[[Any, AttentionMarker], None] | None = None
