"""ModernBERT's decoder. Sliding and full layers alternate."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="modernbert-decoder",
    title="ModernBERT (decoder)",
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 256,
        "local_attention": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 3,
        "cls_token_id": 1,
    },
)
