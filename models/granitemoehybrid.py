"""Granite 4: Mamba-2 in most layers, attention in the others, and a shared expert in place of a mixture."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="granitemoehybrid",
    title="Granite 4",
    tiny={
        **SMALL,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 128,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
        "position_embedding_type": "rope",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
