"""OLMoE. Queries and keys are normalized as a whole."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="olmoe",
    title="OLMoE",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "intermediate_size": 32,
    },
)
