"""GPT-SW3, a GPT-2."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="gpt-sw3",
    title="GPT-SW3",
    tiny={
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "vocab_size": 256,
        "n_positions": 256,
    },
)
