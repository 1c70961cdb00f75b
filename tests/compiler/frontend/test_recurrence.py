"""Methods that stand for those of transformers' classes compute the same, with the markers' definitions in their place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers.models.minimax.configuration_minimax import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock, RecurrentGemmaRglru
from transformers.models.xlstm.configuration_xlstm import xLSTMConfig
from transformers.models.xlstm.modeling_xlstm import xLSTMBackend

from cupola.compiler.frontend import recurrence
from cupola.compiler.frontend.recurrence import marked_recurrences
from cupola.runtime.errors import UnsupportedError

TOKENS, SIZE = 21, 16
POSITIONS = torch.arange(TOKENS)[None]


def linear_attention(q, k, v, decay, beta, layer):
    assert beta is None and decay.shape == v.shape[:3]
    state, rows = torch.zeros(q.shape[2], q.shape[3], v.shape[3]), []
    for i in range(q.shape[1]):
        state = decay[0, i].exp()[:, None, None] * state + k[0, i][:, :, None] * v[0, i][:, None]
        rows.append((q[0, i][:, None] @ state)[:, 0])
    return torch.stack(rows)[None]


def selective_scan(x, delta, a, b, c, layer):
    state, rows = torch.zeros(x.shape[2], a.shape[1]), []
    for i in range(x.shape[1]):
        step = delta[0, i][:, None]
        state = (step * a).exp() * state + step * b[0, i] * x[0, i][:, None]
        rows.append((state * c[0, i]).sum(1))
    return torch.stack(rows)[None]


def causal_conv(x, weight, bias, layer):
    padded = nn.functional.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    return nn.functional.conv1d(padded, weight[:, None], bias, groups=len(weight)).transpose(1, 2)


@pytest.fixture(autouse=True)
def _definitions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    for function in (linear_attention, selective_scan, causal_conv):
        monkeypatch.setattr(recurrence, function.__name__, function)
    with torch.no_grad():
        yield


def filled(module: nn.Module) -> nn.Module:
    for value in module.parameters():
        value.copy_(0.3 * torch.randn_like(value))
    return module.eval()


def lightning_attention() -> nn.Module:
    config = MiniMaxConfig(hidden_size=SIZE, num_attention_heads=2, head_dim=4, num_hidden_layers=3, block_size=8)
    return filled(MiniMaxLightningAttention(config, layer_idx=1))


def test_lightning_attention() -> None:
    module, x = lightning_attention(), torch.randn(1, TOKENS, SIZE)
    expected = module(x, None, None)[0]
    with marked_recurrences(module):
        found = module(x, position_embeddings=None, attention_mask=None)[0]
    torch.testing.assert_close(found, expected)


def test_a_mask_over_lightning_attention_is_refused() -> None:
    module, x = lightning_attention(), torch.randn(1, TOKENS, SIZE)
    with marked_recurrences(module), pytest.raises(UnsupportedError, match="its lightning attention takes attention_mask"):
        module(x, position_embeddings=None, attention_mask=torch.ones(1, TOKENS))


def test_griffins_block() -> None:
    config = RecurrentGemmaConfig(hidden_size=SIZE, lru_width=SIZE, num_attention_heads=2, conv1d_width=4)
    module, x = filled(RecurrentGemmaRecurrentBlock(config, layer_idx=0)), torch.randn(1, TOKENS, SIZE)
    expected = module(x, POSITIONS, None, use_cache=False)[0]
    with marked_recurrences(module):
        found = module(x, POSITIONS, None, use_cache=False)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("power", [1, 40, 1e4, 1e-4, 1e-9])
def test_gates_from_0_to_1(power: float) -> None:
    """Those that are 0 or 1 to float32 too."""
    module = RecurrentGemmaRglru(RecurrentGemmaConfig(lru_width=SIZE, num_attention_heads=2))
    x, gate = torch.randn(1, TOKENS, SIZE), torch.rand(1, TOKENS, SIZE) ** power
    arguments = {"hidden_states": x, "recurrent_gate": gate, "reset": POSITIONS[..., None] == 0, "recurrent_states": None}
    expected = module._rnn_scan(**arguments)[0]
    with marked_recurrences(module):
        found = module._rnn_scan(**arguments)[0]
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected)


def test_xlstms_memory() -> None:
    config = xLSTMConfig(hidden_size=4 * SIZE, num_heads=2, chunk_size=8, autocast_kernel_dtype="float32")
    module = xLSTMBackend(config)
    q, k, v = torch.randn(1, 2, TOKENS, 8), torch.randn(1, 2, TOKENS, 8), torch.randn(1, 2, TOKENS, SIZE)
    gates = {"igate": 15 * torch.tanh(torch.randn(1, 2, TOKENS)), "fgate": 15 * torch.tanh(torch.randn(1, 2, TOKENS))}
    expected = module(q, k, v, **gates)[0]
    with marked_recurrences(module):
        found = module(q, k, v, **gates)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gates_without_a_limit_are_refused() -> None:
    module = xLSTMBackend(xLSTMConfig(hidden_size=4 * SIZE, num_heads=2, gate_soft_cap=100.0))
    x = torch.zeros(1, 2, TOKENS, 8)
    with marked_recurrences(module), pytest.raises(UnsupportedError, match="its gates are capped at 100.0"):
        module(x, x, x, x[..., 0], x[..., 0])


def test_classes_and_files_get_their_own_back() -> None:
    module, before = lightning_attention(), MiniMaxLightningAttention.forward
    with marked_recurrences(module):
        assert MiniMaxLightningAttention.forward is not before
    assert MiniMaxLightningAttention.forward is before
