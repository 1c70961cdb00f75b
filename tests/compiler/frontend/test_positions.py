"""Positions reach models that count their tokens themselves."""

from __future__ import annotations

import torch
import transformers
from torch import nn
from transformers.models.kosmos2_5.modeling_kosmos2_5 import Kosmos2_5TextSinusoidalPositionalEmbedding

from cupola.compiler.frontend.positions import Positions
from cupola.models import llama


class _Outer(transformers.PreTrainedModel):
    """Hands what it does not know on to the text model inside of it, as MOSS Transcribe Diarize does."""

    config_class = transformers.LlamaConfig

    def __init__(self, config: transformers.LlamaConfig) -> None:
        super().__init__(config)
        self.language_model = transformers.LlamaModel(config)

    def get_decoder(self) -> nn.Module:
        return self.language_model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.language_model(input_ids=input_ids, use_cache=False).last_hidden_state


def test_a_text_model_inside_gets_the_positions_that_the_whole_does_not_take() -> None:
    torch.manual_seed(0)
    model, tokens, given = _Outer(transformers.LlamaConfig(**llama.FAMILY.tiny)).eval(), torch.arange(5)[None], torch.arange(7, 12)
    with torch.no_grad():
        expected = model.language_model(input_ids=tokens, position_ids=given[None]).last_hidden_state
        positions = Positions(model, takes_argument=False)
        assert positions.arguments(given) == {}
        torch.testing.assert_close(model(tokens), expected)


def test_sinusoids_behind_the_row_of_padding_are_counted_from_there() -> None:
    table = Kosmos2_5TextSinusoidalPositionalEmbedding(32, 8, padding_idx=4)
    tokens = torch.tensor([[7, 8, 9]])
    expected = table(tokens)
    Positions(table, takes_argument=False).arguments(torch.arange(3))
    torch.testing.assert_close(table(tokens), expected)
