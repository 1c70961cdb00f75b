"""VaultGemma. Soft caps are set low enough for random weights to reach them."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="vaultgemma",
    title="VaultGemma",
    tiny={
        **SMALL,
        "head_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
)
