"""StarCoder 2."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="starcoder2",
    title="StarCoder 2",
    tiny={
        **SMALL,
        "sliding_window": 8,
    },
)
