"""The real model, compiled once for all tests here, and transformers' own reading of the same file."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cupola.compiler.sources.builtin import bring_builtin


@dataclass(frozen=True)
class Compiled:
    """An artifact that the command line made, and the most memory that it took, in bytes."""

    path: Path
    peak_bytes: int

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return Path(bring_builtin("smollm2"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """SmolLM2 in f32 with 2,048 tokens of context, compiled in a process of its own."""
    out = tmp_path_factory.mktemp("smollm2") / "artifact"
    command = [sys.executable, "-m", "cupola", "compile", "smollm2", "-o", str(out), "--context", "2048"]
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the largest child so far: an upper bound for ours
    return Compiled(out, peak * 1024)


@pytest.fixture(scope="session")
def reference(smollm2_file: Path) -> Callable[[list[int]], Any]:
    """Logits, f32 [n, vocab], by transformers on the same dequantized weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32).eval()

    def logits(token_ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([token_ids])).logits[0].numpy()

    return logits
