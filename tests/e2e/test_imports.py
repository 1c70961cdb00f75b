"""What an importer easily gets wrong, model by model: compiled, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tiny_models import assert_matches, tiny_model

FALCON = {"hidden_size": 96, "num_hidden_layers": 2, "vocab_size": 256, "max_position_embeddings": 256}
CASES: dict[str, dict[str, Any]] = {
    "falcon alibi": {**FALCON, "num_attention_heads": 6, "alibi": True, "multi_query": False},  # six: two series of slopes
    "falcon 40b": {**FALCON, "num_attention_heads": 6, "num_kv_heads": 2, "new_decoder_architecture": True},
    "falcon 40b alibi": {**FALCON, "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": True},
}


@pytest.mark.parametrize("name", CASES)
def test_matches_transformers(name: str, tmp_path: Path) -> None:
    assert_matches(tiny_model(name.split()[0], **CASES[name]), tmp_path)
