"""nanochat. Heads are normalized without weights, and logits are capped."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="nanochat",
    title="nanochat",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
