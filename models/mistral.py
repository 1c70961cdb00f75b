"""Mistral."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="mistral",
    title="Mistral",
    tiny={
        **SMALL,
        "sliding_window": 8,
    },
)
