"""Falcon."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="falcon",
    title="Falcon",
    tiny={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 256,
    },
    attention="sdpa",
)
