"""transformers' own reading of the real model that `smollm2` is the artifact of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola.compiler.sources.builtin import bring_builtin


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    return Path(bring_builtin("smollm2"))


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
