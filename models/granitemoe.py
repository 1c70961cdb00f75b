"""Granite 3 with experts. Embeddings, attention, residuals and logits are scaled."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="granitemoe",
    title="Granite (mixture of experts)",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "embedding_multiplier": 12.0,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625,
    },
)
