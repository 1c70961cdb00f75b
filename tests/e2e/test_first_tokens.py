"""Logits of the first tokens alone, beside those of all in torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

import cupola
from cupola.compiler.frontend.trace import trace
from cupola.runtime.errors import OptionError, UnsupportedError
from tests.compiler.frontend.test_trace import config_of
from tests.e2e.tiny_models import SIZES, tiny_model


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "phi"])  # the plain case, a soft cap behind the projection, a bias
def test_they_are_the_first_of_all(tmp_path: Path, model_type: str) -> None:
    model = tiny_model(model_type, **SIZES)
    model.save_pretrained(tmp_path / "model")
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", draft_vocabulary=100)
    manifest = json.loads(artifact.path.joinpath("manifest.json").read_text())
    assert manifest["model"]["draft_only"] and manifest["model"]["vocab_size"] == 100
    manifest["model"]["draft_only"] = False
    artifact.path.joinpath("manifest.json").write_text(json.dumps(manifest))  # so that it may be asked at all
    tokens = np.random.default_rng(0).integers(0, 100, 20).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(cupola.LLM(artifact.path).logits(tokens), expected[:, :100], rtol=1e-3, atol=1e-4)


def test_what_is_no_part_of_the_vocabulary_is_refused() -> None:
    config = config_of("llama")
    with pytest.raises(OptionError, match=f"draft-vocabulary: is {config['vocab_size']}, and the model has {config['vocab_size']} tokens"):
        trace(config, "config.json", 64, first_tokens=config["vocab_size"])


def test_a_model_that_reads_the_weight_by_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama", **SIZES).save_pretrained(tmp_path / "model")

    def forward(
        self: LlamaForCausalLM, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **arguments: object
    ) -> CausalLMOutputWithPast:
        hidden = self.model(input_ids=input_ids, position_ids=position_ids, **arguments).last_hidden_state
        return CausalLMOutputWithPast(logits=torch.nn.functional.linear(hidden, self.lm_head.weight))

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(UnsupportedError, match=f"draft-vocabulary: gives logits of {SIZES['vocab_size']} tokens, .* cut to 100"):
        cupola.compile(tmp_path / "model", out=tmp_path / "artifact", draft_vocabulary=100)
    assert not (tmp_path / "artifact").exists()
