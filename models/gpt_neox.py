"""GPT-NeoX, Pythia."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="gpt_neox",
    title="GPT-NeoX, Pythia",
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 256,
    },
)
