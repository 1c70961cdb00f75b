"""The part of a model that token ids reach is found by calling it; the rest is left out, and nothing else."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from cupola.compiler.frontend.text_path import leave_out, parts_of, text_path, without_towers
from cupola.models import llama


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.text = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 4)])[0])
        self.scale, self.other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.text[0].weight

    def forward(self, x: torch.Tensor, image: torch.Tensor | None = None) -> torch.Tensor:
        assert self.tower[0].weight.dtype == self.other.dtype  # a look at its type is no use of it
        seen = self.tower(image) if image is not None else 0
        return self.head(self.text(x) * self.scale + seen)


USED = {"scale", "text.0.weight", "text.0.bias", "text.1.weight", "text.1.bias", "head.weight"}


def test_the_modules_that_run_and_the_parameters_that_are_used() -> None:
    model = _Model()
    modules, parameters = text_path(model, lambda: model(torch.ones(1, 4)))
    assert modules == {"", "text", "text.0", "text.1", "head"} and parameters == USED


def test_the_others_are_left_out() -> None:
    model = _Model()
    removed = leave_out(model, USED)
    assert set(removed) == {"other", "tower.0.weight", "tower.0.bias", "tower.1.weight", "tower.1.bias"}
    assert {name for name, _ in model.named_parameters(remove_duplicate=False)} == USED
    assert parts_of(removed) == "other and tower"
    assert parts_of(["model.vision.a.weight", "model.vision.b", "lm_head.weight"]) == "model.vision and lm_head"


def test_of_a_call_that_fails_the_modules_are_known_that_ran() -> None:
    model = _Model()
    model.text[1].forward = lambda _: 1 / 0
    modules, parameters = text_path(model, lambda: model(torch.ones(1, 4)))
    assert "text.1" in modules and "head" not in modules and parameters is None


def test_a_tower_whose_parameters_were_left_out_says_where_it_is() -> None:
    with torch.device("meta"):
        tower = transformers.LlamaModel(transformers.LlamaConfig(**llama.FAMILY.tiny))
    leave_out(tower, set())
    with without_towers():
        assert (tower.device, tower.dtype) == (torch.device("cpu"), torch.float32)
    with pytest.raises(StopIteration):
        _ = tower.device
