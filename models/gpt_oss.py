"""gpt-oss. Gates and ups stand in turns, with limits and biases; attention has sinks, and every other layer a window."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="gpt_oss",
    title="gpt-oss",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
)
