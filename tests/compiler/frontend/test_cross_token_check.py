"""Models that keep state other than K/V are refused, by the name of the layer and of the operation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cupola.compiler.frontend.attention  # noqa: F401  defines the attention marker
from cupola.compiler.frontend import trace as compiler_trace
from cupola.compiler.frontend.cross_token_check import check_token_mixing
from cupola.compiler.frontend.functionalize import functionalize
from cupola.compiler.frontend.trace import trace
from cupola.runtime.errors import UnsupportedError

# torch's own decompositions warn about a function of torch's; the compiler traces quietly.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")

SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 256, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
REFUSED = {
    "rwkv": ({}, r"rwkv, rwkv\.blocks\.0\.attention\.time_shift: aten\.pad"),
    "llama4_text": ({"attention_chunk_size": 8, "head_dim": 16}, r"mask of its own, chunked_overlay"),
    "bert": ({}, r"bert: its attention sees later tokens"),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused_by_name(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the table of parts doesn't know the model."""
    monkeypatch.setattr(compiler_trace, "refuse_unsupported_parts", lambda *_: None)
    more, message = REFUSED[model_type]
    with pytest.raises(UnsupportedError, match=message) as caught:
        trace({"model_type": model_type, **SIZES, **more}, "config.json", 64)
    assert str(caught.value).startswith("config.json: ")


class Layer(nn.Module):
    """`operation` of hidden states [1, n, 8] and positions [1, n], after one attention marker."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.operation, self.table = operation, nn.Parameter(torch.ones(16, 8))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        x = nn.functional.embedding(tokens.long(), self.table)[None]
        heads = x[:, None]
        x = torch.ops.cupola.attention(heads, heads, heads, None, None, 0, 1.0, 0, 0.0)[:, :, 0]
        return self.operation(x, positions[None])[0, logit_rows]


def assigned(x: torch.Tensor, value: torch.Tensor, *where: slice | int) -> torch.Tensor:
    """`x` with `x[:, where] = value`."""
    x = x * 1
    x[(slice(None), *where)] = value
    return x


def problem(operation) -> str | None:
    flat = torch.zeros(11, dtype=torch.int32)
    n, r = torch.export.Dim("n", min=9, max=64), torch.export.Dim("r", min=2, max=64)
    dynamic = {"tokens": {0: n}, "positions": {0: n}, "logit_rows": {0: r}}
    inputs = (flat, flat.clone(), torch.zeros(3, dtype=torch.int32))
    exported = torch.export.export(Layer(operation).eval(), inputs, dynamic_shapes=dynamic, strict=False)
    try:
        check_token_mixing(functionalize(exported, "toy", "file"), "toy", "file")
    except UnsupportedError as error:
        return str(error)
    return None


def marked(x: torch.Tensor, where: torch.Tensor, value: torch.Tensor | float = 0.0) -> torch.Tensor:
    """`x` with `x[where] = value`."""
    x = x * 1
    x[where] = value
    return x


KEEPS_APART = {
    "activation": lambda x, p: torch.nn.functional.silu(x) * 2 + 1,
    "norm": lambda x, p: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1),
    "heads": lambda x, p: x.view(1, -1, 2, 4).transpose(1, 2).softmax(-1).transpose(1, 2).reshape(1, -1, 8),
    "logic": lambda x, p: x * (((p == 1) | (p == 2)) & (p > 0))[..., None],
    "halves": lambda x, p: torch.cat((-x[..., 4:], x[..., :4]), -1),
    "angles": lambda x, p: x * (p[..., None].float() * torch.ones(8)).cos(),
    "a product and a bias": lambda x, p: torch.baddbmm(torch.ones(1, 1, 8), x, torch.ones(1, 8, 8)),
    "two matrices of each token": lambda x, p: x + (x.view(1, -1, 4, 2) @ torch.multiply(x, 2.0).view(1, -1, 2, 4)).sum(-1).sum(-1, True),
    "deviation of columns": lambda x, p: x / torch.std(x, -1, keepdim=True),
    "best columns": lambda x, p: x + x.topk(2).values.sum(-1, keepdim=True),
    "a table looked up by position": lambda x, p: x + torch.ones(64)[None].gather(1, p.long())[..., None],
    "a table indexed by position": lambda x, p: x + torch.ones(64, 8)[p],
    "columns looked up": lambda x, p: x.gather(-1, (p * 0).long()[..., None]) + x,
    "columns marked": lambda x, p: x + torch.zeros_like(x).scatter(-1, x.topk(2).indices, 1.0),
    "columns assigned": lambda x, p: assigned(x, x[..., 4:] * 2, slice(None), slice(0, 4)),
    "a column assigned": lambda x, p: assigned(x, x[..., 4], slice(None), 0),
    "all tokens assigned": lambda x, p: assigned(x, x * 2),
    "tokens assigned by a mask": lambda x, p: marked(x, p > 3),
    "repeated columns": lambda x, p: x.repeat(1, 1, 2)[..., 4:12],
    "joined columns": lambda x, p: torch.concat((x[..., 4:], x[..., :4]), -1),
    "a batch of heads spread": lambda x, p: (torch.broadcast_to(x[..., None], (*x.shape, 2)) * x[..., None]).sum(-1),
}
MIXES = {
    "shift": lambda x, p: torch.roll(x, 1, 1),
    "sum": lambda x, p: x + x.sum(1, keepdim=True),
    "sum of everything": lambda x, p: x + x.sum(),
    "running sum": lambda x, p: x.cumsum(1),
    "softmax": lambda x, p: x.softmax(1),
    "neighbours": lambda x, p: x + torch.nn.functional.pad(x[:, :-1], (0, 0, 1, 0)),
    "convolution": lambda x, p: torch.nn.functional.conv1d(x.transpose(1, 2), torch.ones(8, 8, 3), padding=1).transpose(1, 2),
    "own attention": lambda x, p: (x @ x.transpose(1, 2)) @ x,
    "tokens multiplied, and a bias": lambda x, p: x @ torch.baddbmm(torch.ones(1, 1, 8), x.transpose(1, 2), x),
    "deviation of tokens": lambda x, p: x - torch.std(x, 1, keepdim=True),
    "outer sum": lambda x, p: x + (x[:, :, :1] - x[:, :, :1].transpose(1, 2)).amax(-1, keepdim=True),
    "scrambled axes": lambda x, p: x.transpose(1, 2).contiguous().view(1, x.shape[1], 8),
    "place in the call": lambda x, p: x + torch.arange(x.shape[1])[None, :, None],
    "number of tokens": lambda x, p: x * x.shape[1],
    "flip": lambda x, p: x.flip(1),
    "best tokens": lambda x, p: x + x[..., 0].topk(2).values.sum(),
    "tokens looked up": lambda x, p: x.gather(1, p.long()[..., None].expand_as(x)),
    "tokens looked up at the end": lambda x, p: x.transpose(1, 2).gather(2, p.long()[:, None].expand(1, 8, -1)).transpose(1, 2),
    "tokens indexed": lambda x, p: x[:, p[0].long()],
    "tokens written by index": lambda x, p: x.scatter(1, p.long()[..., None].expand_as(x), 1.0),
    "tokens assigned by index": lambda x, p: marked(x.squeeze(0), p[0].long())[None],
    "one token assigned": lambda x, p: assigned(x, x[:, 3], 5),
    "some tokens assigned": lambda x, p: assigned(x, 1.0, slice(1, 5)),
    "tokens by tokens": lambda x, p: x + torch.ones(64)[p.long() - p.long().transpose(0, 1)].sum(-1)[..., None],
    "logic of tokens by tokens": lambda x, p: x + ((p[0][:, None] == 1) | (p == 2)).float().sum(-1)[None, :, None],
    "longest position": lambda x, p: x * p.max(),
}


@pytest.mark.parametrize("name", KEEPS_APART)
def test_what_keeps_tokens_apart_passes(name: str) -> None:
    assert problem(KEEPS_APART[name]) is None


@pytest.mark.parametrize("name", MIXES)
def test_what_mixes_tokens_is_refused(name: str) -> None:
    found = problem(MIXES[name]) or "it passed"
    assert "which cupola does not keep between steps" in found and "aten.embedding" not in found
