"""Positions for models that count their tokens themselves: the caller's positions instead, since a call holds tokens of many sequences."""

from __future__ import annotations

import inspect
import types
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn


class Positions:
    """How a model takes positions: as an argument, of its own or of the text model inside of it, or in its tables of position embeddings.

    Attributes:
        padding: the id of the padding token in models of RoBERTa's kind, which number the other tokens alone; None in others.
        first: the position of a sequence's first token: 0, but 1 + the padding token's id in models of RoBERTa's kind, which count
            only behind the rows of their table that padding takes.
        limit: positions that the tables have, less `first`; None if there are none.
    """

    def __init__(self, model: nn.Module, takes_argument: bool) -> None:
        counting = [module for module in model.modules() if hasattr(type(module), "create_position_ids_from_input_ids")]
        self.padding = next((int(module.padding_idx) for module in counting if takes_argument), None)
        self.first = 0 if self.padding is None else self.padding + 1
        tables = [
            module.position_embeddings for module in counting if isinstance(getattr(module, "position_embeddings", None), nn.Embedding)
        ]
        self.limit = min((table.num_embeddings - self.first for table in tables), default=None)
        self.takes_argument = takes_argument
        self._given = SimpleNamespace(positions=None)
        if not takes_argument:
            for module in filter(_counts_tokens, model.modules()):
                module.forward = types.MethodType(_at_given_positions(self._given), module)
            decoder: Any = model.get_decoder() if isinstance(model, transformers.PreTrainedModel) else None
            if decoder is not None and "position_ids" in inspect.signature(decoder.forward).parameters:
                decoder.register_forward_pre_hook(_with_given_positions(self._given), with_kwargs=True)
        for module in filter(_grows, model.modules()):
            module.forward = types.MethodType(_rows_at_given_positions(self._given), module)

    def arguments(self, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        """The arguments that the model takes for tokens at `positions` [n]."""
        self._given.positions = positions
        return {"position_ids": positions[None] + self.first if self.first else positions[None]} if self.takes_argument else {}


def _with_given_positions(given: SimpleNamespace) -> Any:
    def add(_: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
        return arguments, {**named, "position_ids": given.positions[None]}

    return add


def _counts_tokens(module: nn.Module) -> bool:
    """True for a table of positions which numbers the tokens of a call, as BART's decoder and its descendants have."""
    return isinstance(module, nn.Embedding) and "PositionalEmbedding" in type(module).__name__


def _grows(module: nn.Module) -> bool:
    """True for a table of sinusoids, which looks at the number of tokens to make itself longer, as XGLM's does."""
    return hasattr(module, "make_weights") and isinstance(getattr(module, "weights", None), torch.Tensor)


def _rows_at_given_positions(given: SimpleNamespace) -> Any:
    def forward(self: Any, *_: Any, **__: Any) -> torch.Tensor:
        # Kosmos 2.5 makes `offset` rows more than it counts, but counts from behind the row of padding, as RoBERTa does.
        first = self.padding_idx + 1 if hasattr(self, "create_position_ids_from_input_ids") else getattr(self, "offset", 0)
        return torch.nn.functional.embedding(given.positions[None] + first, self.weights)

    return forward


def _at_given_positions(given: SimpleNamespace) -> Any:
    def forward(self: Any, *_: Any, **__: Any) -> torch.Tensor:
        # Sinusoids have no batch axis, which RoFormer goes by.
        positions = given.positions if "Sinusoidal" in type(self).__name__ else given.positions[None]
        return nn.Embedding.forward(self, positions + getattr(self, "offset", 0))

    return forward
