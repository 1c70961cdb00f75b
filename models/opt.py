"""OPT."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="opt",
    title="OPT",
    tiny={
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "word_embed_proj_dim": 64,
        "max_position_embeddings": 256,
    },
)
