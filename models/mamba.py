"""Mamba: convolutions and selective scans, no attention."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="mamba",
    title="Mamba",
    tiny={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 256,
        "state_size": 8,
        "time_step_rank": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
