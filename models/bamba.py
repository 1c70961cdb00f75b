"""Bamba: Mamba-2 in most layers, attention in the others."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="bamba",
    title="Bamba",
    tiny={
        **SMALL,
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
