"""Hunyuan (dense)."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="hunyuan_v1_dense",
    title="Hunyuan (dense)",
    tiny={
        **SMALL,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
