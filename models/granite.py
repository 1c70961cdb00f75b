"""Granite. The multipliers are those of a released model."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="granite",
    title="Granite",
    tiny={
        **SMALL,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.3,
        "logits_scaling": 8.0,
    },
)
