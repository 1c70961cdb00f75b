"""Phi 1/2."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="phi",
    title="Phi 1/2",
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "partial_rotary_factor": 0.5,
    },
)
