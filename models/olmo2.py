"""OLMo 2."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="olmo2",
    title="OLMo 2",
    tiny=SMALL,
)
