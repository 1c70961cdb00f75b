"""Phi 3."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="phi3",
    title="Phi 3",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "sliding_window": None,
    },
)
