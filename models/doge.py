"""Doge. It adds a number to the scores of each key, made of its values; it goes into the product, by one more dimension of each head."""

from __future__ import annotations

import types
from typing import Any

from cupola.models.family import SMALL, AttentionMarker, Family
from cupola.runtime.errors import UnsupportedError


def use_marker(model: Any, attention: AttentionMarker) -> None:
    """Replaces the forward of every attention module.

    Raises:
        UnsupportedError: sequences may be longer than the number of keys that a token chooses among those it sees.
    """
    config = model.config
    if config.max_position_embeddings > config.keep_window_size:
        problem = f"is {config.keep_window_size}: of longer sequences, up to max_position_embeddings, tokens choose their keys"
        raise UnsupportedError(problem, field="keep_window_size", fix=f"lower max_position_embeddings to {config.keep_window_size}")
    for layer in model.model.layers:
        layer.self_attn.forward = types.MethodType(_forward(attention, config.sliding_window or 0), layer.self_attn)


def _forward(attention: AttentionMarker, window: int) -> Any:
    import torch
    from transformers.models.doge.modeling_doge import apply_rotary_pos_emb

    def forward(self: Any, hidden_states: Any, position_embeddings: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        heads = (*hidden_states.shape[:2], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        value = self.v_proj(hidden_states)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        bias = (self.A * torch.nn.functional.softplus(self.dt_proj(value))).exp().transpose(1, 2)[..., None]
        query = torch.cat((query, torch.full_like(query[..., :1], 1 / self.scaling)), -1)
        key = torch.cat((key, bias), -1)
        out = attention(query, key, value.view(heads).transpose(1, 2), None, None, 0, float(self.scaling), window, 0.0)
        return self.o_proj(out.flatten(2)), None

    return forward


FAMILY = Family(
    model_type="doge",
    title="Doge",
    tiny={**SMALL, "keep_window_size": 256},
    attention="eager",
    adapt=use_marker,
)
