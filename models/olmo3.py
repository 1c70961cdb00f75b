"""OLMo 3. Sliding and full layers alternate."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="olmo3",
    title="OLMo 3",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)
