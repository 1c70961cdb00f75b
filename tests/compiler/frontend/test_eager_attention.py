"""Attention that a model writes out is found by its mask; run with a reference in the marker's place, the graph has the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cupola.compiler.frontend.attention import Mask
from cupola.compiler.frontend.eager_attention import find_attention
from cupola.runtime.errors import UnsupportedError

HEADS, TOKENS, DIM = 2, 7, 4
LOWEST = torch.finfo(torch.float32).min


def causal(tokens: int, window: int) -> torch.Tensor:
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    return torch.where((distance >= 0) & ((distance < window) | (window == 0)), 0.0, LOWEST)


def plain(q: Any, k: Any, v: Any, mask: Any) -> Any:
    scores = q @ k.transpose(-1, -2) / 2.5 * 0.5
    return nn.functional.dropout(nn.functional.softmax(scores + mask, dim=-1), 0.1, training=False).to(v.dtype) @ v


def mask_first(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return torch.softmax(mask + torch.matmul(q * 0.3, k.transpose(2, 3)), -1) @ v


def joined_heads(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """As BART's descendants write it."""
    q, k, v = (each.reshape(HEADS, -1, DIM) for each in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2))
    if mask.size() != (1, 1, q.shape[1], q.shape[1]):
        raise ValueError("the mask has the wrong size")
    scores = scores.view(1, HEADS, q.shape[1], -1) + mask
    scores = torch.max(scores, torch.full((), LOWEST)).view(HEADS, q.shape[1], -1)
    weights = nn.functional.softmax(scores, dim=-1)
    weights = weights.view(1, HEADS, q.shape[1], -1).view(HEADS, q.shape[1], -1)
    return torch.bmm(weights, v).view(1, HEADS, -1, DIM)


def with_baddbmm(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """As GPT-NeoX's descendants write it."""
    tokens = q.shape[2]
    q, k = (each.reshape(HEADS, -1, DIM) for each in (q, k))
    scores = torch.baddbmm(torch.zeros(HEADS, tokens, tokens), q, k.transpose(1, 2), beta=1.0, alpha=0.5)
    return torch.softmax(scores.view(1, HEADS, tokens, -1) + mask, -1) @ v


class Model(nn.Module):
    def __init__(self, attend: Callable[..., Any], mask: Any) -> None:
        super().__init__()
        self.attend, self.mask = attend, mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x.view(1, -1, 3, HEADS, DIM).transpose(1, 3).unbind(2)
        return self.attend(q, k, v, self.mask).transpose(1, 2).flatten(2)


class Reference(torch.fx.Interpreter):
    """Runs a graph with attention in float64 in the marker's place."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not torch.ops.cupola.attention.default:
            return super().call_function(target, args, kwargs)
        q, k, v, slopes, sinks, _, scale, window, softcap = args
        assert (slopes, sinks, softcap) == (None, None, 0.0)
        scores = q.double() @ k.double().transpose(-1, -2) * scale + causal(q.shape[2], window)
        return (scores.softmax(-1) @ v.double()).float().transpose(1, 2)


def export(attend: Callable[..., Any], mask: Any) -> Any:
    tokens = torch.export.Dim("n", min=2, max=64)
    return torch.export.export(Model(attend, mask), (torch.randn(1, TOKENS, 3 * HEADS * DIM),), dynamic_shapes=({1: tokens},), strict=False)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("attend", [plain, mask_first, joined_heads, with_baddbmm], ids=lambda attend: attend.__name__)
def test_the_marker_computes_the_same(attend: Callable[..., Any], window: int) -> None:
    torch.manual_seed(0)
    exported = export(attend, Mask(window))
    find_attention(exported)
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert names.count("cupola.attention.default") == 1
    assert not any(part in name for name in names for part in ("softmax", "masked", "bmm", "matmul", "dropout"))
    x = torch.randn(1, TOKENS, 3 * HEADS * DIM)
    mask = causal(TOKENS, window)
    expected = Model(attend, mask if attend is not joined_heads else mask[None, None])(x)
    (found,) = Reference(exported.graph_module).run(x)
    torch.testing.assert_close(found, expected)


def biased(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return torch.softmax(q @ k.transpose(-1, -2) + q.sum(-1, keepdim=True) + mask, -1) @ v


def unweighted(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return (q @ k.transpose(-1, -2) + mask) @ v


def shown(q: Any, k: Any, v: Any, mask: Any) -> Any:
    weights = torch.softmax(q @ k.transpose(-1, -2) + mask, -1)
    return weights @ v + weights.mean(-1, keepdim=True)


def halved(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return torch.softmax(q @ k.transpose(-1, -2) + mask, -1).square() @ v


@pytest.mark.parametrize("attend", [biased, unweighted, shown, halved], ids=lambda attend: attend.__name__)
def test_what_is_not_plain_attention_is_refused(attend: Callable[..., Any]) -> None:
    exported = export(attend, Mask())
    with pytest.raises(UnsupportedError, match="it computes with its attention mask"):
        find_attention(exported)


def test_a_mask_that_kernels_do_not_know_is_refused_where_it_is_added() -> None:
    with pytest.raises(UnsupportedError, match="it masks some"):
        torch.zeros(1, 1, 2, 2) + Mask(problem="it masks some of its tokens by itself")
    with pytest.raises(UnsupportedError, match=r"computes with its attention mask \(mul\)"):
        torch.zeros(1, 1, 2, 2) * Mask()
