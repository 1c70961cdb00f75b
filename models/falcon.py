"""Falcon, RefinedWeb models among them.

Its attention spreads K/V heads over all query heads and folds ALiBi into the mask, so its attention module gets a forward
that hands the marker K/V heads as they are, and slopes.
"""

from __future__ import annotations

import types
from typing import Any

from cupola.models.family import AttentionMarker, Family


def use_marker(model: Any, attention: AttentionMarker) -> None:
    """Replaces the scores, softmax and weighting of every attention module; projections stay the model's own."""
    trunk = model.transformer
    for block in trunk.h:
        module = block.self_attention
        if trunk.use_alibi:
            module.register_buffer("alibi_slopes", _slopes(module), persistent=False)
        module.forward = types.MethodType(_forward(attention), module)
    trunk.use_alibi = False  # or the model computes with its mask


def _slopes(module: Any) -> Any:
    """ALiBi's slopes, in bf16 as Falcon has them, times the scale: what a score gains for each token that its key is nearer."""
    import torch
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    two_tokens = torch.ones(1, 2, dtype=torch.long, device="cpu")
    return build_alibi_tensor(two_tokens, module.num_heads, torch.float32)[:, 0, 1] * module.inv_norm_factor


def _heads(module: Any, fused: Any) -> tuple[Any, Any, Any]:
    """q [1, n, H, D], k and v [1, n, G, D] of a joined projection: group by group, head by head, or all queries first."""
    heads, dim, (batch, tokens, _) = module.num_heads, module.head_dim, fused.shape
    if module.new_decoder_architecture:
        groups = module.num_kv_heads
        grouped = fused.view(batch, tokens, groups, heads // groups + 2, dim)
        return grouped[..., :-2, :].reshape(batch, tokens, heads, dim), grouped[..., -2, :], grouped[..., -1, :]
    if module.multi_query:
        return fused.view(batch, tokens, heads + 2, dim).split((heads, 1, 1), dim=2)
    return fused.view(batch, tokens, heads, 3, dim).unbind(-2)


def _forward(attention: AttentionMarker) -> Any:
    def forward(self: Any, hidden_states: Any, *_: Any, position_embeddings: Any = None, **__: Any) -> tuple[Any, None]:
        from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

        query, key, value = (part.transpose(1, 2) for part in _heads(self, self.query_key_value(hidden_states)))
        slopes = getattr(self, "alibi_slopes", None)
        if slopes is None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        out = attention(query, key, value, slopes, None, self.layer_idx, self.inv_norm_factor, 0, 0.0)
        return self.dense(out.flatten(2)), None

    return forward


FAMILY = Family(
    model_type="falcon",
    title="Falcon",
    tiny={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 256,
        "max_position_embeddings": 256,
    },
    attention="sdpa",
    adapt=use_marker,
)
