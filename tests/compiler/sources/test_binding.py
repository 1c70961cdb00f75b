from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from cupola.compiler.sources import Naming, bind_weights, open_source, unused_tensors
from cupola.models import FAMILIES
from cupola.runtime.errors import SourceError, UnsupportedError


def shapes(model):
    """Buffers that checkpoints hold are weights like any other."""
    kept = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    return {name: tuple(parameter.shape) for name, parameter in {**dict(model.named_parameters()), **kept}.items()}


def bind(folder, model):
    source = open_source(folder)
    bound = bind_weights(source, shapes(model), Naming.of(model), model.all_tied_weights_keys)
    return source, bound


def assert_bound(folder, model):
    source, bound = bind(folder, model)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(bound[name].load(), parameter.detach().numpy(), err_msg=name)
    assert unused_tensors(source, bound, model.all_tied_weights_keys) == ()


def tiny_config(model_type):
    return AutoConfig.for_model(model_type, **dict(next(each.tiny for each in FAMILIES if each.model_type == model_type)))


@pytest.mark.parametrize("model_type", sorted(each.model_type for each in FAMILIES))
def test_every_family_binds(tmp_path, model_type):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).float()
    model.save_pretrained(tmp_path / "whole")
    assert_bound(tmp_path / "whole", model)


@pytest.mark.parametrize("model_type", ["gpt2", "bloom", "opt"])
def test_a_checkpoint_of_the_base_model_binds(tmp_path, model_type):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type)).float()
    model.base_model.save_pretrained(tmp_path / "base")
    model.config.save_pretrained(tmp_path / "base")
    assert_bound(tmp_path / "base", model)


@pytest.fixture
def llama(make_model, tmp_path):
    def make(**changes):
        model = make_model("llama", num_key_value_heads=2, **changes)
        model.save_pretrained(tmp_path / "model")
        return tmp_path / "model", model

    return make


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_and_misshapen_tensors_are_named(llama):
    folder, model = llama()
    rewrite(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(SourceError, match=r"model\.norm\.weight: is missing from the weights"):
        bind(folder, model)
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(5)}))
    with pytest.raises(SourceError, match=r"model\.norm\.weight: has the shape \[5\], where the configuration asks for \[64\]"):
        bind(folder, model)


def test_tied_weights_may_come_under_either_name(llama):
    folder, model = llama(tie_word_embeddings=True)
    assert_bound(folder, model)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    assert_bound(folder, model)
    rewrite(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": tensors["lm_head.weight"].clone()}))
    assert_bound(folder, model)
    rewrite(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(SourceError, match=r"lm_head\.weight: differs from model\.embed_tokens\.weight"):
        bind(folder, model)


def test_extra_tensors_are_told_and_buffers_are_not(llama):
    folder, model = llama()
    rewrite(
        folder,
        lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8), "visual.weight": torch.ones(2)}),
    )
    source, bound = bind(folder, model)
    assert unused_tensors(source, bound) == ("visual.weight",)


def test_integers_are_left_out_where_nothing_takes_them_and_refused_elsewhere(llama):
    folder, model = llama()
    rewrite(folder, lambda tensors: tensors.update({"model.counter": torch.ones(3, dtype=torch.int64)}))
    source, bound = bind(folder, model)
    assert unused_tensors(source, bound) == ("model.counter",)
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(torch.int8)}))
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight: has the type I8"):
        bind(folder, model)


def test_gguf_binds(tiny_gguf, make_model):
    model = make_model("llama", num_key_value_heads=2, tie_word_embeddings=True)
    assert_bound(tiny_gguf, model)


def test_old_names_of_gpt_neox_bind(tmp_path):
    model = AutoModelForCausalLM.from_config(tiny_config("gpt_neox")).float()
    model.save_pretrained(tmp_path / "model")
    for name in ("embed_out.weight", "lm_head.weight"):
        copy = shutil.copytree(tmp_path / "model", tmp_path / name)
        other = {"embed_out.weight": "lm_head.weight", "lm_head.weight": "embed_out.weight"}[name]
        rewrite(copy, lambda tensors: tensors.update({name: tensors.pop(other)} if other in tensors else {}))
        assert json.loads((copy / "config.json").read_text())["model_type"] == "gpt_neox"
        assert_bound(copy, model)


def test_tensors_of_a_class_around_the_model_bind(tmp_path):
    """Checkpoints of ShieldGemma 2 are a classifier's, whose `model` is the whole of Gemma 3."""
    text = {**next(family for family in FAMILIES if family.model_type == "gemma3_text").tiny}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = AutoConfig.for_model("shieldgemma2", text_config=text, vision_config=vision)
    model = AutoModelForMultimodalLM.from_config(config)
    names = {name: name.replace("model.language_model.", "model.language_model.model.") for name, _ in model.named_parameters()}
    save_file({names[name]: value.detach() for name, value in model.named_parameters()}, tmp_path / "model.safetensors")
    config.save_pretrained(tmp_path)
    _, bound = bind(tmp_path, model)
    assert {name: bound[name].name for name in names} == names
