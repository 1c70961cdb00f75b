"""Qwen3 with experts. Heads are normalized, and some layers are dense."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="qwen3_moe",
    title="Qwen3 (mixture of experts)",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
)
