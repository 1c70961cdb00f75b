"""DeepSeek V3 and R1. K and V come from one latent vector; experts are chosen in groups, by scores with biases, beside a shared one."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="deepseek_v3",
    title="DeepSeek V3",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
    },
)
