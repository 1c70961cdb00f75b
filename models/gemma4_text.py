"""Gemma 4 (text). Sliding and full layers alternate, and each layer has an embedding of its own."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="gemma4_text",
    title="Gemma 4 (text)",
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "head_dim": 16,
        "global_head_dim": 32,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 256,
        "hidden_size_per_layer_input": 16,
    },
)
