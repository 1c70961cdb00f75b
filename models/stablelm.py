"""StableLM."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="stablelm",
    title="StableLM",
    tiny=SMALL,
)
