"""The first layers of a compiled model, with its norm and its head, are what transformers makes of a model of so many layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import cupola
from cupola.runtime.device.executor import load
from cupola.runtime.device.interface import Batch, SamplingPlan
from cupola.runtime.errors import EngineError, OptionError
from tests.e2e.tiny_models import BOUND, SIZES, tiny_model

NUM_LAYERS, TOKENS = 3, [3, 1, 4, 1, 5, 9, 2, 6]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def prompt(artifact: cupola.Artifact) -> Batch:
    kv, positions = artifact.manifest.kv, np.arange(len(TOKENS), dtype=np.int32)
    groups = range(len(kv.groups))
    return Batch(
        tokens=ints(*TOKENS), positions=positions, slots=tuple(positions + kv.block_size for _ in groups),
        query_starts=ints(0, len(TOKENS)), context_lens=ints(len(TOKENS)), block_tables=tuple(ints(1)[None] for _ in groups),
        logit_rows=ints(7, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(("llama", {}), id="sums in place"),
        pytest.param(("gemma2", {"head_dim": 16}), marks=pytest.mark.by_turns, id="norms behind layers, two groups"),
        pytest.param(("gpt_neox", {}), marks=pytest.mark.by_turns, id="attention beside the MLP"),
    ],
)
def test_logits_are_those_of_a_model_of_fewer_layers(tmp_path: Path, family: tuple[str, dict[str, Any]]) -> None:
    """Prompts, and tokens that are drafted from there, each from the one before."""
    tiny_model(family[0], **{**SIZES, "num_hidden_layers": NUM_LAYERS, **family[1]}).save_pretrained(tmp_path / "model")
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant="f32")
    executor = load(artifact, [4] * len(artifact.manifest.kv.groups))
    assert executor.num_layers == NUM_LAYERS
    whole = executor.submit(prompt(artifact), SamplingPlan(rows=(0, 1))).result().rows([0, 1]).copy()
    for count in (1, 2):
        config = transformers.AutoConfig.from_pretrained(tmp_path / "model", num_hidden_layers=count)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:count]
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", config=config, dtype=torch.float32).eval()
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
        found = executor.submit(prompt(artifact), SamplingPlan(rows=(0, 1), num_layers=count)).result().rows([0, 1])
        assert np.abs(found - expected[[7, 2]]).max() < BOUND and np.abs(found - whole).max() > 10 * BOUND
        step = prompt(artifact)._replace(tokens=ints(TOKENS[-1]), positions=ints(7), query_starts=ints(0, 1), logit_rows=ints(0))
        step = step._replace(slots=tuple(slots[-1:] for slots in step.slots))
        drafted = executor.submit(step, SamplingPlan(5, num_layers=count)).result().argmax()[-5:, 0].tolist()
        with torch.no_grad():
            rows = model(input_ids=torch.tensor([TOKENS + drafted[:-1]]), use_cache=False).logits[0, 7:].numpy()
        assert all(row[token] > row.max() - BOUND for row, token in zip(rows, drafted, strict=True))
    assert np.array_equal(executor.submit(prompt(artifact), SamplingPlan(rows=(0, 1))).result().rows([0, 1]), whole)
    for count in (0, NUM_LAYERS):
        with pytest.raises(EngineError, match=f"{count} layers of {NUM_LAYERS} can't run alone"):
            executor.submit(prompt(artifact), SamplingPlan(num_layers=count))
    with pytest.raises(OptionError, match=f"asks for {NUM_LAYERS} layers, and the model has {NUM_LAYERS}"):
        cupola.LLM(artifact, speculative=f"early-exit:{NUM_LAYERS}")
