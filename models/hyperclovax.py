"""HyperCLOVA X. The multipliers are not 1, so that a lost one shows."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="hyperclovax",
    title="HyperCLOVA X",
    tiny={
        **SMALL,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.3,
        "logits_scaling": 8.0,
    },
)
