"""Code World Model. Sliding and full layers alternate."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="cwm",
    title="Code World Model",
    tiny={
        **SMALL,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)
