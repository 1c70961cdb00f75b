"""LFM2: short convolutions over tokens in most layers, attention in the others."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="lfm2",
    title="LFM2",
    tiny={
        **SMALL,
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_multiple_of": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
