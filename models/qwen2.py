"""Qwen 2."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="qwen2",
    title="Qwen 2",
    tiny=SMALL,
)
