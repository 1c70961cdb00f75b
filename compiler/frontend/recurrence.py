"""Recurrences as the importer catches them: opaque markers in the traced graph, in the place of functions of transformers' modeling files.

Those files look the functions up by name as they run: convolutions over tokens, scans, delta rules. So the names stand for the markers
while a model is traced. What surrounds a recurrence and treats tokens one by one, such as gates, norms and scales, stays traced code.
Classes that loop over tokens in a method of their own get another method.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional
from transformers.activations import ACT2FN

from cupola.compiler.frontend.attention import UNNUMBERED
from cupola.runtime.errors import UnsupportedError

_TRACING_ONLY = "recurrences are for tracing only"


@torch.library.custom_op("cupola::causal_conv", mutates_args=())
def causal_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: int) -> torch.Tensor:
    """The marker of `ops.CausalConv`: x [1, n, C], weight [C, W], bias [C] -> [1, n, C]."""
    raise AssertionError(_TRACING_ONLY)


@causal_conv.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, layer: int) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("cupola::linear_attention", mutates_args=())
def linear_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor | None, layer: int
) -> torch.Tensor:
    """The marker of `ops.LinearAttention`: q and k [1, n, G, K], v [1, n, H, V], decay [1, n, H(, K)], beta [1, n, H] -> as v."""
    raise AssertionError(_TRACING_ONLY)


@linear_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor | None, layer: int) -> torch.Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.custom_op("cupola::selective_scan", mutates_args=())
def selective_scan(x: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, layer: int) -> torch.Tensor:
    """The marker of `ops.SelectiveScan`: x and delta [1, n, C], a [C, N], b and c [1, n, N] -> as x."""
    raise AssertionError(_TRACING_ONLY)


@selective_scan.register_fake
def _(x: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, layer: int) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


MARKERS = (causal_conv, linear_attention, selective_scan)


def _refuse(others: Mapping[str, Any], what: str) -> None:
    """Raises UnsupportedError for an argument that changes the result and that no marker takes."""
    for name, value in others.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise UnsupportedError(f"its {what} takes {name}, which no kernel of cupola knows")


# What models hand on, and what changes nothing: sequences are told apart by the runtime, and states are its own.
_HARMLESS = {
    "position_ids", "cache_position", "output_attentions", "output_hidden_states", "use_cache", "chunk_size", "use_mambapy",
    "use_associative_scan", "position_embeddings",
}  # fmt: skip


def _causal_conv1d(hidden_states: Any, weight: Any, bias: Any = None, activation: str | None = None, **_others: Any) -> Any:
    _refuse(_others, "convolution")
    out = causal_conv(hidden_states.transpose(1, 2), weight, bias, UNNUMBERED).transpose(1, 2)
    return out if activation is None else ACT2FN[activation](out)


def _mamba2_chunk_scan(
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    **_others: Any,
) -> Any:
    """Mamba-2 (arXiv:2405.21060): linear attention whose decay and values are scaled by a step."""
    _refuse(_others, "scan")
    dt = dt if dt_bias is None else dt + dt_bias
    dt = functional.softplus(dt) if dt_softplus else dt
    low, high = (float(limit) for limit in dt_limit)
    if not dt_softplus or low > 0 or high < math.inf:  # softplus is never below 0
        dt = torch.clamp(dt, min=low, max=None if high == math.inf else high)
    out = linear_attention(C, B, hidden_states * dt[..., None], A * dt, None, UNNUMBERED)
    out = out if D is None else out + hidden_states * D[:, None]
    return (out, None) if return_final_states else out


def _gated_delta_rule(
    query: Any, key: Any, value: Any, g: Any, beta: Any, use_qk_l2norm_in_kernel: bool = False, **_others: Any
) -> tuple[Any, None]:
    """The gated delta rule (arXiv:2412.06464), and Kimi's, whose decay has a number for each dimension of keys (arXiv:2510.26692)."""
    _refuse(_others, "delta rule")
    scale = query.shape[-1] ** -0.5
    query, key = (_l2norm(x) if use_qk_l2norm_in_kernel else x for x in (query, key))
    return linear_attention(query * scale, key, value, g, beta, UNNUMBERED), None


def _l2norm(x: Any) -> Any:
    """By the mean of squares, as norms are recognized."""
    dim = x.shape[-1]
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6 / dim) * dim**-0.5


def _mamba_selective_scan(
    hidden_states: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_others: Any,
) -> Any:
    """Mamba (arXiv:2312.00752), tokens last."""
    _refuse(_others, "scan")
    x, dt, B, C = (part.transpose(1, 2) for part in (hidden_states, dt, B, C))
    dt = dt if delta_bias is None else dt + delta_bias
    out = selective_scan(x, functional.softplus(dt) if delta_softplus else dt, A, B, C, UNNUMBERED)
    out = (out if D is None else out + x * D).transpose(1, 2)
    out = out if z is None else out * functional.silu(z)
    return (out, None) if return_last_state else out


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _causal_conv1d,
    "mamba2_chunk_scan": _mamba2_chunk_scan,
    "torch_chunk_gated_delta_rule": _gated_delta_rule,
    "chunk_kimi_delta_attention": _gated_delta_rule,
    "mamba_selective_scan": _mamba_selective_scan,
}
"""What stands for functions of modeling files, by their names."""


def _lightning(self: Any, hidden_states: Any, **_others: Any) -> tuple[Any, None]:
    """Lightning attention (arXiv:2401.04658): linear attention, of which each head keeps the same share at every token."""
    _refuse(_others, "lightning attention")
    shape = (*hidden_states.shape[:2], self.num_attention_heads)
    q, k, v = self.act_fn(self.qkv_proj(hidden_states)).reshape(*shape, 3 * self.head_dim).split(self.head_dim, dim=3)
    out = linear_attention(q, k, v, -self.slope_rate.reshape(1, 1, -1).expand(shape), None, UNNUMBERED)
    out = self.norm(out.reshape(*shape[:2], -1)) * torch.sigmoid(self.output_gate(hidden_states))
    return self.out_proj(out), None


def _griffin(self: Any, input_states: Any, position_ids: Any, attention_mask: Any = None, **_others: Any) -> tuple[Any, None]:
    """Griffin's recurrent block (arXiv:2402.19427), whose convolution is a module; attention layers alone need the mask."""
    _refuse(_others, "recurrent block")
    x = causal_conv(self.linear_x(input_states), self.conv_1d.weight.squeeze(1), self.conv_1d.bias, UNNUMBERED)
    return self.linear_out(self.rg_lru(x, position_ids) * self.act_fn(self.linear_y(input_states))), None


def _rg_lru(self: Any, hidden_states: Any, recurrent_gate: Any, **_others: Any) -> tuple[Any, None]:
    """h ← gate · h + x, as Mamba's scan of one state a channel, whose step is −log gate and whose input is x over the step.

    Beyond the bounds of the step the gate is 0 or 1 to float32. Where a sequence begins, its state is of zeros, so `reset` changes nothing.
    """
    step = torch.clamp(-torch.log(recurrent_gate), min=1e-30, max=80.0)
    one = torch.ones_like(hidden_states[..., :1])
    decay = hidden_states.new_full((hidden_states.shape[-1], 1), -1.0)
    return selective_scan(hidden_states / step, step, decay, one, one, UNNUMBERED), None


def _mlstm(self: Any, query: Any, key: Any, value: Any, igate: Any, fgate: Any, **_others: Any) -> tuple[Any, None]:
    """xLSTM's matrix memory (arXiv:2405.04517), heads before tokens: linear attention, and the gates themselves as one more value.

    transformers keeps sums relative to the largest gate so far, so that they don't overflow. Gates that are capped don't let them. What it
    adds to the divisor beside, `eps`, is far below what float32 rounds, and the norm behind takes any factor away.
    """
    _refuse(_others, "xLSTM backend")
    cap = self.config.gate_soft_cap
    if cap is None or cap > _MAX_GATE:
        raise UnsupportedError(f"its gates are capped at {cap}, and sums of them fit float32 up to {_MAX_GATE}")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    size = v.shape[-1]
    gate = torch.exp(igate.transpose(1, 2))[..., None]
    values = torch.cat([v * gate, *[gate] * _COLUMNS], dim=-1)
    decay = -functional.softplus(-fgate.transpose(1, 2))
    sums = linear_attention(q * q.shape[-1] ** -0.5, k, values, decay, None, UNNUMBERED)
    out = sums[..., :size] / torch.clamp(torch.abs(sums[..., size : size + 1]), min=1.0)
    return out.transpose(1, 2), None


_MAX_GATE = 40  # e^40 = 2e17
_COLUMNS = 16  # with the gates, though one would do: so vectors divide a row of values as before

METHODS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "MiniMaxLightningAttention": {"forward": _lightning},
    "RecurrentGemmaRecurrentBlock": {"forward": _griffin},
    "RecurrentGemmaRglru": {"_rnn_scan": _rg_lru},
    "xLSTMBackend": {"forward": _mlstm},
}
"""What stands for methods of classes, by the names of both."""


@contextlib.contextmanager
def marked_recurrences(model: torch.nn.Module) -> Iterator[None]:
    """Within the context, the modeling files of a model's modules and their classes call markers."""
    classes = {type(module) for module in model.modules()}
    owners: dict[Any, Mapping[str, Callable[..., Any]]] = {each: METHODS.get(each.__name__, {}) for each in classes}
    owners |= {sys.modules[each.__module__]: FUNCTIONS for each in classes}
    replaced = [(owner, name, getattr(owner, name)) for owner, names in owners.items() for name in names if hasattr(owner, name)]
    for owner, name, _ in replaced:
        setattr(owner, name, owners[owner][name])
    try:
        yield
    finally:
        for owner, name, function in replaced:
            setattr(owner, name, function)


__all__ = ["MARKERS", "marked_recurrences"]
