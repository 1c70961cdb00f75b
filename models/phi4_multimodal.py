"""Phi-4 multimodal, of which the text model compiles: token ids alone never reach the layers for images and sound."""

from cupola.models.family import SMALL, Family

FAMILY = Family(
    model_type="phi4_multimodal",
    title="Phi-4 multimodal (text)",
    tiny={
        **SMALL,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": 8,
        "original_max_position_embeddings": 256,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "crop_size": 56,
            "patch_size": 14,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_blocks": 1,
            "num_attention_heads": 4,
            "ext_pw_out_channel": 32,
            "nemo_conv_channels": 32,
        },
    },
)
