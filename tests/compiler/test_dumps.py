"""The upper steps of the debugging ladder leave files to read beside the artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

import cupola
from cupola.models import llama


def test_passes_and_kernels_land_in_numbered_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **{**llama.FAMILY.tiny, "num_hidden_layers": 1})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("CUPOLA_DEBUG", "4")
    cupola.compile(tmp_path / "model", out=tmp_path / "artifact")
    folder = tmp_path / "artifact.ir"
    dumps = sorted(file.name for file in folder.iterdir())
    assert [int(name.partition("_")[0]) for name in dumps] == list(range(len(dumps)))
    assert dumps[0] == "00_drop_batch.py" and [name[3:] for name in dumps[-2:]] == ["kernels.s", "forward.c"]
    assert "cupola.linear" in next(folder.glob("*_fuse_linear.py")).read_text(encoding="utf-8")
    cupola.Artifact.open(tmp_path / "artifact")
