"""Qwen 3.5: a gated delta rule in most layers, gated attention in the others."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="qwen3_5_text",
    title="Qwen 3.5",
    tiny={
        **SMALL,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
