"""GLM 4."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="glm4",
    title="GLM 4",
    tiny={
        **SMALL,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
