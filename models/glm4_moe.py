"""GLM 4.5 and 4.6. Experts are chosen as DeepSeek V3 does it, and a part of each head is rotated."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="glm4_moe",
    title="GLM 4.5",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "partial_rotary_factor": 0.5,
        "use_qk_norm": True,
    },
)
