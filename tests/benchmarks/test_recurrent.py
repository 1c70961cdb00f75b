"""Random checkpoints of real models' shapes are what transformers reads, of the layers that they should have."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

from cupola.models import find_family

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "recurrent" / "__main__.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_recurrent_models", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kinds_of_layers_come_in_turns(script: ModuleType) -> None:
    for name, fields in script.SHAPES.items():
        config = script.configuration(name, 7)
        assert config.num_hidden_layers == 7
        if turn := fields.get("turn"):
            assert config.layer_types == (turn * 7)[:7]


def test_transformers_reads_a_checkpoint(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = find_family("lfm2")
    assert family is not None
    config = transformers.AutoConfig.for_model("lfm2", **family.tiny)
    monkeypatch.setattr(script, "MAX_SHARD_BYTES", 1 << 14)
    num_parameters = script.write_checkpoint(config, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert sum(value.numel() for value in model.parameters()) == num_parameters
    assert all(torch.isfinite(value).all() for value in model.parameters())
