"""Mamba-2: convolutions and state spaces, no attention."""

from cupola.models.family import Family

FAMILY = Family(
    model_type="mamba2",
    title="Mamba-2",
    tiny={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "vocab_size": 256,
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 2,
        "chunk_size": 8,
        "expand": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
