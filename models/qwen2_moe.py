"""Qwen1.5 and Qwen2 with experts: shared ones have a gate of their own, some layers are dense, attention has biases."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="qwen2_moe",
    title="Qwen2 (mixture of experts)",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "mlp_only_layers": [0],
        "num_hidden_layers": 3,
        "norm_topk_prob": True,
    },
)
