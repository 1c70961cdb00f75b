"""Llama."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="llama",
    title="Llama",
    tiny=SMALL,
)
