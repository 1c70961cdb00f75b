"""Gemma."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="gemma",
    title="Gemma",
    tiny={
        **SMALL,
        "head_dim": 16,
    },
)
