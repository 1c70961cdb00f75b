"""Gemma 2. Soft caps are set low enough for random weights to reach them."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="gemma2",
    title="Gemma 2",
    tiny={
        **SMALL,
        "head_dim": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
)
