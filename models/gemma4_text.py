"""Gemma 4 (text). Sliding and full layers alternate, and each layer has an embedding of its own."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="gemma4_text",
    title="Gemma 4 (text)",
    tiny={
        **SMALL,
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
