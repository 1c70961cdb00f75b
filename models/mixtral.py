"""Mixtral. Eight experts a layer, of which a token goes to two."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="mixtral",
    title="Mixtral",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
)
