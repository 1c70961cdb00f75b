"""Falcon-H1: Mamba-2 and attention side by side in each layer."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="falcon_h1",
    title="Falcon-H1",
    tiny={
        **SMALL,
        "head_dim": 16,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
