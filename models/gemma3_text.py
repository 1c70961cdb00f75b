"""Gemma 3 (text). Sliding and full layers alternate."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="gemma3_text",
    title="Gemma 3 (text)",
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
)
