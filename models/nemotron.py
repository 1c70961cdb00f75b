"""Nemotron."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="nemotron",
    title="Nemotron",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
