"""An artifact that gives hidden states gives those of transformers, and others say that they don't."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import cupola
from cupola.passes.give_hidden import give_hidden
from cupola.runtime.device.executor import load
from cupola.runtime.device.interface import Batch, SamplingPlan
from cupola.runtime.errors import EngineError
from tests.e2e.tiny_models import SIZES, tiny_model

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def prompt(block_size: int) -> Batch:
    positions = np.arange(len(TOKENS), dtype=np.int32)
    return Batch(
        tokens=ints(*TOKENS), positions=positions, slots=(positions + block_size,), query_starts=ints(0, len(TOKENS)),
        context_lens=ints(len(TOKENS)), block_tables=(ints(1)[None],), logit_rows=ints(2, 7),
    )  # fmt: skip


@pytest.mark.parametrize("quant", ["f32", "w8a8"])
def test_hidden_states_are_those_of_transformers(quant: str, tmp_path: Path) -> None:
    model = tiny_model("llama", **SIZES)
    model.save_pretrained(tmp_path / "model")
    artifact = cupola.compile(tmp_path / "model", quant=quant, out=tmp_path / "artifact", extra_passes=[give_hidden()])
    output = load(artifact, [4]).submit(prompt(artifact.manifest.kv.block_size), SamplingPlan(rows=(0, 1))).result()
    with torch.no_grad():
        expected = model.model(torch.tensor([TOKENS])).last_hidden_state[0].numpy()
    for i, row in enumerate((2, 7)):
        found = output.hidden(i)
        assert np.abs(found - expected[row]).max() < (1e-4 if quant == "f32" else 0.1) * np.abs(expected[row]).max()
        assert output.argmax()[-1][i] == output.row(i).argmax()


def test_without_the_pass_there_are_none(tmp_path: Path) -> None:
    tiny_model("llama", **SIZES).save_pretrained(tmp_path / "model")
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact")
    output = load(artifact, [4]).submit(prompt(artifact.manifest.kv.block_size), SamplingPlan(rows=(0, 1))).result()
    with pytest.raises(EngineError, match="give_hidden"):
        output.hidden(0)
