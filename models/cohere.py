"""Cohere Command R."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="cohere",
    title="Cohere Command R",
    tiny={
        **SMALL,
        "use_qk_norm": True,
    },
)
