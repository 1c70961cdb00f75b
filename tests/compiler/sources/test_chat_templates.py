"""Chat templates, named tokens and what ends an answer are those that transformers finds in the same folder."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from cupola.compiler.sources import open_source
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import SourceError

TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<|im_end|>", "a", "b"]


@pytest.fixture
def describe(folder):
    """describe(field=…): the folder with a tokenizer whose tokenizer_config.json has these fields."""

    def write(**fields: object):
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, []))
        tokenizer.add_special_tokens(TOKENS[:5])
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **fields}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return write


def reference(folder):
    return AutoTokenizer.from_pretrained(folder)


def by_name(templates):
    return {"default": templates} if isinstance(templates, str) else templates or {}


NAMED = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]


@pytest.mark.parametrize("given", [None, "a", "", NAMED, [*NAMED, {"name": "rag", "template": "r"}]])
def test_templates_are_transformers_templates(describe, given):
    folder = describe(**({} if given is None else {"chat_template": given}))
    assert open_source(folder).chat_templates == by_name(reference(folder).chat_template)


def test_templates_in_files(describe):
    folder = describe(chat_template="from the configuration")
    first = open_source(folder).sha256
    (folder / "chat_template.jinja").write_text("from a file")
    assert open_source(folder).chat_templates == by_name(reference(folder).chat_template) == {"default": "from a file"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("for tools")
    source = open_source(folder)
    assert source.chat_templates == reference(folder).chat_template == {"default": "from a file", "tool_use": "for tools"}
    assert source.sha256 != first


def test_a_processors_template_is_the_last_resort(describe):
    folder = describe()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "p"}))
    assert open_source(folder).chat_templates == {"default": "p"}
    assert open_source(describe(chat_template="t")).chat_templates == {"default": "t"}


def test_a_byte_order_mark_goes(describe):
    folder = describe(chat_template="\ufeffa")
    assert open_source(folder).chat_templates == {"default": "a"}
    (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfb")
    assert open_source(folder).chat_templates == {"default": "b"}


def test_templates_without_a_default_are_not_lost(describe):
    source = open_source(describe(chat_template=[{"name": "tool_use", "template": "t"}]))
    assert source.chat_templates == {"default": "t"}
    assert any("the only chat template, tool_use, is taken for all chats" in note for note in source.notes)
    source = open_source(describe(chat_template=[{"name": "x", "template": "1"}, {"name": "y", "template": "2"}]))
    assert source.chat_templates == {"x": "1", "y": "2"}
    assert any("x, y none is the default" in note for note in source.notes)


@pytest.mark.parametrize("given", [3, [3], [{"name": "a"}], {"template": "a"}])
def test_what_is_no_template_is_refused(describe, given):
    with pytest.raises(SourceError, match=r"tokenizer_config\.json: chat_template: is neither"):
        open_source(describe(chat_template=given))


def test_names_that_lead_elsewhere_are_refused(describe):
    with pytest.raises(SourceError, match=r"has the chat templates '\.\./x'"):
        open_source(describe(chat_template=[{"name": "../x", "template": "a"}]))


@pytest.mark.parametrize(
    "fields",
    [
        {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": "<unk>"},
        {"bos_token": None, "eos_token": {"content": "</s>", "__type": "AddedToken", "special": True}},
        {"eos_token": "</s>", "bos_token": "<s>", "sep_token": "a", "cls_token": "b", "mask_token": "<pad>", "image_token": "a"},
        {"extra_special_tokens": {"tool_token": "b"}, "bos_token": "<s>", "add_bos_token": True},
    ],
)
def test_named_tokens_are_transformers_ones(describe, fields):
    folder = describe(**fields)
    assert open_source(folder).special_tokens == {**reference(folder).special_tokens_map, **by_config(folder, fields)}


def by_config(folder, fields):
    """The tokens that config.json names and the tokenizer's files don't mention."""
    ids = json.loads((folder / "config.json").read_text())
    return {name: TOKENS[ids[f"{name}_id"]] for name in ("bos_token", "eos_token", "pad_token") if name not in fields}


def test_older_folders_name_their_tokens_in_a_map(describe):
    folder = describe(bos_token="<s>")
    tokens = {"bos_token": "a", "eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    assert open_source(folder).special_tokens == reference(folder).special_tokens_map


def test_the_tokenizers_end_token_stops_too(describe):
    folder = describe(eos_token="<|im_end|>")
    source = open_source(folder)
    assert source.generation_config["eos_token_id"] == [2, 4]
    assert any('end token "<|im_end|>" (4) stops an answer too; the model\'s configuration names [2]' in note for note in source.notes)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 2]}))
    assert open_source(folder).generation_config["eos_token_id"] == [4, 2]
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    assert open_source(folder).generation_config == {"temperature": 0.5, "eos_token_id": [2, 4]}


def test_an_end_token_that_can_not_stop_is_told(describe):
    folder = describe(eos_token="<nowhere>")  # which transformers adds behind the vocabulary
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(TOKENS)}))
    notes = open_source(folder).notes
    assert any('"<nowhere>" has the id 7, and the model has 7 tokens: it does not stop an answer' in note for note in notes)


def test_stop_strings_are_kept_as_far_as_they_can_stop(describe):
    folder = describe()

    def stops(given):
        (folder / "generation_config.json").write_text(json.dumps({"stop_strings": given}))
        source = open_source(folder)
        return source.generation_config.get("stop_strings"), [note for note in source.notes if "stop_strings" in note]

    assert stops(["###", "\n\n"]) == (["###", "\n\n"], []) and stops("###")[0] == ["###"]
    assert stops(["", "a" * 2000, "b"])[0] == ["b"] and len(stops(["", "b"])[1]) == 1
    kept, notes = stops([f"stop {i}" for i in range(99)])
    assert len(notes) == 1 and SamplingParams(stop=kept).stop_strings == tuple(kept)
    assert stops(3)[0] is None and len(stops(3)[1]) == 1


def test_gguf_files_name_tokens_and_templates(write_gguf, tmp_path):
    def fields(writer):
        writer.add_pad_token_id(3)
        writer.add_string("tokenizer.chat_template.tool_use", "\ufefft")

    source = open_source(write_gguf(tmp_path / "tiny.gguf", fields=fields))
    assert source.chat_templates == {"default": "{{ messages[0]['content'] }}", "tool_use": "t"}
    tokens = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    ids = {"unk_token": 0, "bos_token": 1, "eos_token": 2, "pad_token": 3}
    assert source.special_tokens == {name: tokens.convert_ids_to_tokens(token_id) for name, token_id in ids.items()}
