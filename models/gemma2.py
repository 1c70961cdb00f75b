"""Gemma 2. Soft caps are set low enough for random weights to reach them."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="gemma2",
    title="Gemma 2",
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "head_dim": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
)
