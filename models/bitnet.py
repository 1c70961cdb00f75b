"""BitNet. Norms stand before the output and down projections; weights are read as the numbers that they are."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="bitnet",
    title="BitNet",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
