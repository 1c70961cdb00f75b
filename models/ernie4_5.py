"""ERNIE 4.5."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="ernie4_5",
    title="ERNIE 4.5",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
