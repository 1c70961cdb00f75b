from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cupola.compiler.frontend import attention
from cupola.compiler.frontend import trace as compiler_trace
from cupola.compiler.frontend.state import kv_layout
from cupola.compiler.frontend.trace import TracedModel, trace
from cupola.compiler.frontend.translate import INPUTS, translate
from cupola.compiler.pipeline import import_passes
from cupola.models import find_family
from cupola.runtime.errors import SourceError, UnsupportedError
from tests.passes.harness import verified


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    family = find_family(model_type)
    assert family is not None
    return {"model_type": model_type, **family.tiny, **changes}


def frequencies(traced: TracedModel) -> torch.Tensor:
    values = {**traced.exported.state_dict, **traced.exported.constants}
    (found,) = [value for name, value in values.items() if name.endswith("rotary_emb.inv_freq")]
    return found


def test_parameters_and_ties() -> None:
    traced = trace(config_of("llama", tie_word_embeddings=True), "config.json", 64)
    assert set(traced.tied) | set(traced.tied.values()) == {"lm_head.weight", "model.embed_tokens.weight"}
    assert not set(traced.tied) & set(traced.parameters)
    assert traced.parameters["model.layers.1.mlp.down_proj.weight"] == (64, 128)
    assert traced.naming.base_model_prefix == "model" and traced.family is find_family("llama") and traced.notes == ()


def test_translation_names_inputs_and_weights() -> None:
    traced = trace(config_of("llama"), "config.json", 64)
    names = [var.name for var in translate(traced, "config.json")["forward"].params]
    assert tuple(names[:3]) == INPUTS and set(traced.parameters) <= set(names[3:])


def test_an_unknown_family_traces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("llama")
    monkeypatch.setattr(compiler_trace, "find_family", lambda _: None)
    traced = trace(config, "config.json", 64)
    assert traced.family is None and "forward" in [var.name_hint for var in translate(traced, "config.json").get_global_vars()]


def test_buffers_that_checkpoints_hold_are_weights() -> None:
    traced = trace({**config_of("llama"), "model_type": "apertus", "pad_token_id": 0}, "config.json", 64)
    assert traced.parameters["model.layers.0.mlp.act_fn.beta"] == ()


def test_layer_norms_without_weights_translate() -> None:
    traced = trace({**config_of("llama"), "model_type": "olmo", "pad_token_id": 0}, "config.json", 64)
    assert "R.nn.layer_norm" in translate(traced, "config.json").script()


def test_a_configuration_that_makes_no_model() -> None:
    with pytest.raises(SourceError, match=r"^config\.json: .*the configuration does not describe a model"):
        trace(config_of("llama", hidden_size="many"), "config.json", 64)


def test_a_window_that_comes_as_a_mask_alone_reaches_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*inputs: Any, sliding_window: int | None = None, **others: Any) -> Any:
        return attention._attention_interface(*inputs, **others)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "cupola", forgetful)
    mod = translate(trace(config_of("mistral"), "config.json", 64), "config.json")
    for step in import_passes():
        mod = verified(step, mod)
    assert [group.window for group in kv_layout(mod, "float32", 16, "config.json").groups] == [8]


def test_attention_that_cannot_be_replaced_is_caught_where_it_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-J's comes from a closed set of classes."""
    config = config_of("gptj")
    monkeypatch.setattr(compiler_trace, "find_family", lambda model_type: None)
    exported = trace(config, "config.json", 64).exported
    assert sum(node.target is torch.ops.cupola.attention.default for node in exported.graph.nodes) == config["n_layer"]


def test_a_tower_that_knows_its_own_attention_alone_is_left_out() -> None:
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    low = {**tower, "intermediate_size": 16}
    config = {"model_type": "deepseek_vl_hybrid", "text_config": config_of("llama"), "vision_config": low, "high_res_vision_config": tower}
    traced = trace(config, "config.json", 64)
    assert all(".language_model." in name or name.startswith("lm_head.") for name in traced.parameters)


def test_what_a_family_cannot_adapt_is_refused_by_file_and_field() -> None:
    with pytest.raises(UnsupportedError, match=r"^config\.json: keep_window_size: is 128: .* tokens choose their keys"):
        trace({**config_of("doge"), "keep_window_size": 128}, "config.json", 64)


def test_what_the_importer_does_not_know_is_one_clear_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    traced = trace(config_of("llama"), "config.json", 64)
    monkeypatch.setattr("cupola.compiler.frontend.translate.CONVERTERS", {})
    with pytest.raises(UnsupportedError, match=r"^config\.json: TVM's importer stopped"):
        translate(traced, "config.json")
    assert "BlockBuilder" not in capfd.readouterr().err


BERT = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "is_decoder": True,
    "max_position_embeddings": 64, "pad_token_id": 3,
}  # fmt: skip


def test_a_table_of_positions_whose_first_rows_are_for_padding_bounds_the_context() -> None:
    counting, plain = (trace({**BERT, "model_type": name}, "config.json", 64) for name in ("roberta", "bert"))
    assert (counting.max_positions, counting.padding) == (60, 3)
    assert (plain.max_positions, plain.padding) == (None, None)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}


@pytest.mark.parametrize(("context", "factor", "note"), [(64, 1, "short factors"), (65, 4, "long factors"), (256, 4, "long factors")])
def test_longrope_is_chosen_by_the_context(context: int, factor: float, note: str) -> None:
    config = config_of("phi3", rope_scaling=LONGROPE, original_max_position_embeddings=64)
    traced = trace(config, "config.json", context)
    plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(frequencies(traced), plain / factor)
    assert len(traced.notes) == 1 and note in traced.notes[0] and "64" in traced.notes[0]


def test_longrope_scales_as_transformers_does() -> None:
    """The amplitude, too, depends on the context that the model was stretched to."""
    config = config_of("phi3", rope_scaling=LONGROPE, original_max_position_embeddings=64)
    text = translate(trace(config, "config.json", 256), "config.json").script()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    scale = model.model.rotary_emb.attention_scaling
    assert math.isclose(scale, math.sqrt(1 + math.log(256 / 64) / math.log(64)))
    assert f"{scale:.4f}" in text


def test_dynamic_scaling_has_not_begun_where_the_configuration_ends() -> None:
    config = config_of("llama", rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    traced = trace(config, "config.json", 256)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
    model.model.rotary_emb(torch.zeros(1, 1), torch.arange(256)[None])  # transformers' own update, at the last position
    torch.testing.assert_close(frequencies(traced), model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scalings_that_never_change_are_transformers_own(scaling: dict[str, Any]) -> None:
    config = config_of("llama", rope_scaling=scaling)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    torch.testing.assert_close(frequencies(trace(config, "config.json", 256)), model.model.rotary_emb.inv_freq)
