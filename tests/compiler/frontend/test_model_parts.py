"""Parts of a model that cupola lacks are named before anything is traced. Types and parts are those of the published models."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoConfig

from cupola.compiler.frontend import trace as compiler_trace
from cupola.compiler.frontend.trace import trace
from cupola.compiler.sources import LazyTensor, Naming
from cupola.compiler.sources.config_check import check_config
from cupola.models import FAMILIES, llama
from cupola.runtime.errors import SourceError, UnsupportedError

EXPERTS, INDEXER = "a mixture of experts of a kind of its own", "an indexer chooses"
RWKV, LATER, ANSWER = "(RWKV)", "prompts whose tokens see later ones", "a window of the answer"

PARTS: dict[str, tuple[str, ...]] = {
    "doge": (EXPERTS,), "deepseek_v32": (INDEXER,), "glm_moe_dsa": (INDEXER,),
    "rwkv": (RWKV,), "paligemma": (LATER,), "unlimited_ocr": (ANSWER,),
}  # fmt: skip

CHANGES: dict[str, dict[str, Any]] = {
    "doge": {"is_moe": True},
}


def published(model_type: str, **changes: Any) -> dict[str, Any]:
    """The content of a config.json with the class's defaults."""
    return {**json.loads(AutoConfig.for_model(model_type, **changes).to_json_string(use_diff=False))}


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(*_: object) -> None:
        raise AssertionError("it is traced")

    monkeypatch.setattr(compiler_trace, "_export", traced)


@pytest.mark.parametrize("model_type", PARTS)
def test_a_part_that_cupola_lacks_is_named_before_tracing(model_type: str) -> None:
    config = published(model_type, **CHANGES.get(model_type, {}))
    check_config(config, "config.json")
    with pytest.raises(UnsupportedError, match=rf"^config\.json: {model_type}: has .*, which cupola does not run") as caught:
        trace(config, "config.json", 64)
    every = (EXPERTS, INDEXER, RWKV, LATER, ANSWER)
    assert {part for part in every if part in str(caught.value)} == set(PARTS[model_type])


def test_weights_that_do_not_fit_are_refused_before_tracing() -> None:
    def bind(parameters: dict[str, tuple[int, ...]], naming: Naming, tied: dict[str, str], _: tuple[str, ...]) -> dict[str, LazyTensor]:
        assert parameters["model.layers.1.mlp.down_proj.weight"] == (64, 128) and naming.base_model_prefix == "model" and not tied
        raise SourceError("is missing from the weights")

    with pytest.raises(SourceError, match="is missing from the weights"):
        trace({"model_type": "llama", **llama.FAMILY.tiny}, "config.json", 64, bind)


def test_no_verified_family_has_such_a_part() -> None:
    for family in FAMILIES:
        with pytest.raises(AssertionError, match="it is traced"):
            trace({"model_type": family.model_type, **family.tiny}, "config.json", 64)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("musicgen", r"is made of several models \(text_encoder, audio_encoder, decoder\)"),
        ("florence2", "has an encoder beside its decoder"),
        ("clip", "reads images beside text"),
        ("t5", "which has an encoder beside its decoder"),
        ("distilbert", "which fills in masked tokens"),
        ("whisper_encoder", "which transformers does not know"),
    ],
)
def test_what_is_more_or_other_than_a_text_model_is_said(model_type: str, reason: str) -> None:
    known = model_type not in ("musicgen", "whisper_encoder")
    subs = {"text_encoder": {"model_type": "t5"}, "audio_encoder": {"model_type": "encodec"}, "decoder": {"model_type": "musicgen_decoder"}}
    config = published(model_type) if known else {"model_type": model_type, **subs}
    with pytest.raises(Exception, match=rf"^config\.json: .*{reason}"):
        check_config(config, "config.json")


def test_a_list_of_a_size_for_each_layer_is_legal() -> None:
    check_config(published("gemma3n_text", intermediate_size=[128] * 30, num_hidden_layers=30), "config.json")
