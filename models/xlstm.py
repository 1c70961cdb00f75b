"""xLSTM: matrix memories with gates, no attention."""

from __future__ import annotations

from typing import Any

from cupola.models.family import AttentionMarker, Family


def take_prompts_whole(model: Any, _: AttentionMarker) -> None:
    """The model cuts prompts by itself; steps are the runtime's."""
    model.config.max_inference_chunksize = 1 << 40


FAMILY = Family(
    model_type="xlstm",
    title="xLSTM",
    tiny={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "vocab_size": 256,
        "chunk_size": 8,
        "autocast_kernel_dtype": "float32",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    adapt=take_prompts_whole,
)
