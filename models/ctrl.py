"""CTRL."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="ctrl",
    title="CTRL",
    tiny={
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "dff": 128,
        "vocab_size": 256,
        "n_positions": 256,
    },
)
