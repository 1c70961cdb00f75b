"""MPT. It adds ALiBi to its scores by itself, so its attention module gets a forward that calls the marker."""

from __future__ import annotations

import types
from typing import Any

from cupola.models.family import AttentionMarker, Family


def use_marker(model: Any, attention: AttentionMarker) -> None:
    """Replaces the scores, softmax and weighting of every attention module; projections stay the model's own."""
    for block in model.transformer.blocks:
        block.attn.register_buffer("alibi_slopes", _slopes(block.attn.n_heads), persistent=False)
        block.attn.forward = types.MethodType(_forward(attention), block.attn)


def _slopes(num_heads: int) -> Any:
    """ALiBi's slopes, read from transformers' own table of biases: what a score gains for each token that its key is nearer."""
    import torch
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    biases = build_mpt_alibi_tensor(num_heads, 2, device=torch.device("cpu"))  # [H, 1, 2], for keys 1 and 0 tokens away
    return (biases[:, 0, 1] - biases[:, 0, 0]).contiguous()


def _forward(attention: AttentionMarker) -> Any:
    def forward(self: Any, hidden_states: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        joined = self.Wqkv(hidden_states)
        if self.clip_qkv:
            joined = joined.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        heads = (*joined.shape[:2], self.n_heads, self.head_dim)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in joined.chunk(3, dim=2))
        out = attention(query, key, value, self.alibi_slopes, None, 0, float(self.softmax_scale), 0, 0.0)
        return self.out_proj(out.flatten(2)), None

    return forward


FAMILY = Family(
    model_type="mpt",
    title="MPT",
    tiny={
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "expansion_ratio": 2,
        "max_seq_len": 256,
        "vocab_size": 256,
    },
    attention="eager",
    adapt=use_marker,
)
