"""Qwen 3."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="qwen3",
    title="Qwen 3",
    tiny={
        **SMALL,
        "head_dim": 16,
    },
)
