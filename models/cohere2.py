"""Cohere Command R7B. Only the sliding layers have rotary embedding."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="cohere2",
    title="Cohere Command R7B",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)
