from __future__ import annotations

import json
import shutil

import gguf
import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from cupola.compiler.sources import open_source
from cupola.compiler.sources.gguf_tokenizer import convert_tokenizer, stop_token_ids
from cupola.runtime.errors import SourceError

TRICKY = [
    "Hello, world!",
    "",
    " ",
    "   leading",
    "trailing   ",
    "a\n\nb\r\n\tc",
    "don't we'll I'M",
    "x=1;y=22;z=3333",
    " 12 345  6.78",
    "½ ² ٣ ⅷ",
    "naïve café ümlaut",
    "日本語のテキスト。",
    "Привет, мир",
    "مرحبا بالعالم",
    "😀👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈",
    "é \u200b\ufeff",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|><|endoftext|>",
    "<|im_start",
    "a<|im_end|>b",
    "def f(x):\n    return x  # 42\n",
    "\x00\x01\x7f",
    "\u3000全角",
    "<0x0A>",
    "▁low",
    "ab" * 200,
]


def encode(tokenizer_json, text):
    return Tokenizer.from_str(tokenizer_json).encode(text).ids


def test_smollm2_encodes_as_transformers_does(smollm2):
    """But for digits: the model's own tokenizer splits them off first, which transformers' conversion leaves out."""
    source = open_source(smollm2)
    reference = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    mine = Tokenizer.from_str(source.tokenizer_json)
    for text in TRICKY:
        if not any(character.isnumeric() for character in text):
            assert mine.encode(text).ids == reference(text).input_ids, text
    digits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(digits)
    for text in TRICKY:
        ids = mine.encode(text).ids
        assert ids == reference(text).input_ids, text
        assert mine.decode(ids, skip_special_tokens=False) == text
    assert mine.get_vocab_size() == 49152
    assert source.chat_templates == {"default": reference.chat_template}
    assert source.special_tokens == reference.special_tokens_map


@pytest.mark.parametrize(("architecture", "pre"), [("llama", "llama-bpe"), ("qwen2", "qwen2"), ("qwen3", "qwen2"), ("llama", "gpt-2")])
def test_tiny_vocabularies_encode_as_transformers_does(write_gguf, tmp_path, architecture, pre):
    path = write_gguf(tmp_path / "tiny.gguf", architecture, pre=pre, fields=lambda writer: writer.add_add_bos_token(True))
    source = open_source(path)
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in TRICKY:
        expected = reference(text).input_ids
        assert encode(source.tokenizer_json, text) == expected, text
        assert expected[:1] == [1]
    assert Tokenizer.from_str(source.tokenizer_json).get_vocab_size() <= 320
    assert source.notes == ()


@pytest.mark.parametrize(("fields", "adds"), [({"add_bos_token": True}, True), ({"add_bos_token": False}, False), ({}, False)])
def test_bos_is_added_if_the_file_says_so(write_gguf, tmp_path, fields, adds):
    def change(writer):
        if "add_bos_token" in fields:
            writer.add_add_bos_token(fields["add_bos_token"])

    source = open_source(write_gguf(tmp_path / "tiny.gguf", fields=change))
    assert encode(source.tokenizer_json, "hello") == ([1] if adds else []) + encode(source.tokenizer_json, "hello")[-1:]


def test_llama3_takes_whole_words_first_and_adds_bos(write_gguf, tmp_path):
    source = open_source(write_gguf(tmp_path / "tiny.gguf", pre="llama-bpe"))
    assert json.loads(source.tokenizer_json)["model"]["ignore_merges"] is True
    assert encode(source.tokenizer_json, "hello")[0] == 1


@pytest.mark.parametrize(("pre", "known"), [("glm4", "llama3"), ("hunyuan", "qwen2")])
def test_ways_to_split_have_several_names(write_gguf, tmp_path, pre, known):
    sources = [open_source(write_gguf(tmp_path / f"{name}.gguf", pre=name)) for name in (pre, known)]
    one, other = (json.loads(source.tokenizer_json)["pre_tokenizer"] for source in sources)
    assert one == other and sources[0].notes == ()


def test_deepseek_splits_digits_by_three_and_chinese_from_latin(write_gguf, tmp_path):
    source = open_source(write_gguf(tmp_path / "tiny.gguf", pre="deepseek-v3"))
    words = Tokenizer.from_str(source.tokenizer_json).pre_tokenizer.pre_tokenize_str("Hi 12345, (東京)wow\n\nif")
    pieces = ["Hi 12345, (東京)wow\n\nif"[begin:end] for _, (begin, end) in words]
    assert pieces == ["Hi", " ", "123", "45", ",", " (", "東京", ")wow", "\n\n", "if"] and source.notes == ()


def test_gemma4_has_merges_over_spaces_that_show_and_adds_no_bos():
    merges = ["▁ a", "a b", "▁a b", "h i", "▁ hi"]
    fields = {
        **sentencepiece(model="gemma4", merges=merges),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer_json, notes = convert_tokenizer(fields, "gemma4", "file")
    tokenizer = Tokenizer.from_str(tokenizer_json)
    assert tokenizer.encode("hi ab").tokens == ["hi", "▁ab"] and notes == ()
    assert tokenizer.decode(tokenizer.encode("hi ab é").ids) == "hi ab é"


def test_an_unknown_way_to_split_is_told(write_gguf, tmp_path):
    source = open_source(write_gguf(tmp_path / "tiny.gguf", pre="brand-new"))
    assert any("'brand-new'" in note and "token ids may differ" in note for note in source.notes)


def sentencepiece(**changes):
    """The metadata of a small sentencepiece vocabulary."""
    words = ["▁", "a", "b", "▁a", "ab", "▁ab", "1", "2", "h", "i", "hi", "▁hi"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    types = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    scores = [0.0] * 259 + [-float(index) for index in range(len(words), 0, -1)]
    fields = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**fields, **changes}.items()}


def test_sentencepiece_encodes_as_transformers_does(write_gguf, make_model, tmp_path):
    metadata = sentencepiece()
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", "llama")
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.ggml.")
        add = {"tokens": writer.add_token_list, "scores": writer.add_token_scores, "token_type": writer.add_token_types}.get(name)
        add(value) if add else (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    for key in ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"):
        writer.add_uint32(f"llama.{key}", 2 if key.endswith("head_count") else 32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((len(metadata["tokenizer.ggml.tokens"]), 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="spm.gguf")
    tokenizer_json = open_source(tmp_path / "spm.gguf").tokenizer_json
    for text in [*TRICKY, "ab ab  hi"]:
        if not text.startswith((" ", "▁")):  # to which the conversion gives no space in front
            assert encode(tokenizer_json, text) == reference(text).input_ids, text
    assert encode(tokenizer_json, "ab")[0] == 1


def test_sentencepiece_encodes_as_sentencepiece_does(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the quick  brown fox\n    jumps over 12 lazy dogs\n" * 50 + "pack my box with five dozen liquor jugs\n" * 50)
    options = {"vocab_size": 310, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    for add_prefix in (True, False):
        SentencePieceTrainer.train(input=str(corpus), model_prefix=str(tmp_path / "m"), add_dummy_prefix=add_prefix, **options)
        trained = SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
        ids = range(trained.vocab_size())
        types = [2 if trained.is_unknown(i) else 3 if trained.is_control(i) else 6 if trained.is_byte(i) else 1 for i in ids]
        metadata = sentencepiece(
            tokens=[trained.id_to_piece(i) for i in ids],
            scores=[trained.get_score(i) for i in ids],
            token_type=types,
            add_bos_token=False,
            add_space_prefix=add_prefix,
        )
        converted, _ = convert_tokenizer(metadata, "llama", "file")
        for text in [*(text for text in TRICKY if "\0" not in text), " the", "  quick  brown ", "the quick fox"]:
            assert encode(converted, text) == trained.encode(text), text
            assert Tokenizer.from_str(converted).decode(trained.encode(text)) == text.replace("▁", " "), text
        # llama.cpp begins anew after each special token
        assert encode(converted, "the</s> fox</s>box") == [*trained.encode("the"), 2, *trained.encode(" fox"), 2, *trained.encode("box")]


def test_sentencepiece_without_a_space_in_front():
    with_space, _ = convert_tokenizer(sentencepiece(add_bos_token=False), "llama", "file")
    without, _ = convert_tokenizer(sentencepiece(add_bos_token=False, add_space_prefix=False), "llama", "file")
    tokens = sentencepiece()["tokenizer.ggml.tokens"]
    assert [tokens[each] for each in encode(with_space, "ab")] == ["▁ab"]
    assert [tokens[each] for each in encode(without, "ab")] == ["ab"]
    assert Tokenizer.from_str(without).decode(encode(without, " ab")) == " ab"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, r"tokenizer\.ggml\.tokens: is not a list"),
        ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens: is not a list of texts"),
        ({"scores": [1.0]}, r"tokenizer\.ggml\.scores: does not have one entry"),
        ({"token_type": 3}, r"tokenizer\.ggml\.token_type: does not have one entry"),
        ({"bos_token_id": 10**6}, r"tokenizer\.ggml\.bos_token_id: is 1000000, not one of the 271 tokens"),
        ({"eos_token_id": "x"}, r"tokenizer\.ggml\.eos_token_id: is 'x'"),
        ({"model": "gpt2", "merges": ["nothing here at all"]}, r"tokenizer\.ggml: cannot be made a tokenizer"),
    ],
)
def test_contradictory_tokenizers(changes, message):
    with pytest.raises(SourceError, match=message):
        convert_tokenizer(sentencepiece(**changes), "llama", "file")


def test_unknown_and_missing_tokenizers_mean_token_ids_only():
    assert convert_tokenizer({}, "llama", "file")[0] is None
    content, notes = convert_tokenizer(sentencepiece(model="rwkv"), "llama", "file")
    assert content is None and "token ids only" in notes[0]


def test_every_token_that_ends_an_answer_is_found():
    tokens = {"tokens": ["<|im_end|>", "a", "<|endoftext|>", "<|eot_id|>", "b"], "token_type": [3, 1, 3, 1, 1]}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in {**tokens, "eos_token_id": 2, "eot_token_id": 4}.items()}
    assert stop_token_ids(metadata) == [2, 4, 0]
    assert stop_token_ids({}) == []


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<|endoftext|>", *alphabet, "he", "ll"])}
    return vocab, [("h", "e"), ("l", "l")]


def test_tokenizer_json_is_taken_as_it_is(folder):
    vocab, merges = byte_level()
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    assert open_source(folder).tokenizer_json == (folder / "tokenizer.json").read_text()


def write_tokenizer(folder, config, pre_tokenizer=None, decoder=None, normalizer=None):
    """A byte-level `tokenizer.json` of 259 tokens, and a `tokenizer_config.json`."""
    vocab, merges = byte_level()
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoder or decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))


def notes_on_ids(folder):
    return tuple(note for note in open_source(folder).notes if "end token" not in note)


ADDED = {"content": "<|im_end|>", "lstrip": False, "rstrip": True, "single_word": False, "normalized": False, "special": True}


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"added_tokens_decoder": {"259": ADDED}}, {}),
        ({"eos_token": "<|im_end|>"}, {}),
        ({"additional_special_tokens": ["<|im_end|>", "<|im_start|>"]}, {}),
        ({}, {"added_tokens.json": {"<|im_end|>": 259, "plain word": 260}}),
        ({}, {"special_tokens_map.json": {"pad_token": {"content": "<|im_end|>", "lstrip": True}}}),
        ({"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}, {}),
        ({"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": False}, {}),
    ],
    ids=str,
)
def test_what_stands_beside_tokenizer_json_counts(folder, config, files):
    write_tokenizer(folder, config)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    source, reference = open_source(folder), AutoTokenizer.from_pretrained(folder)
    for text in [*TRICKY, "Hi <|im_end|>  x", "a plain words", "hell"]:
        assert encode(source.tokenizer_json, text) == reference(text).input_ids, text
    assert notes_on_ids(folder) == ()


@pytest.mark.parametrize("by_normalizer", [False, True])
def test_no_space_in_front_of_sentencepiece_texts_if_the_configuration_says_so(folder, by_normalizer):
    parts = {"decoder": decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])}
    if by_normalizer:
        parts["normalizer"] = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        parts["pre_tokenizer"] = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        parts["pre_tokenizer"] = pre_tokenizers.Metaspace("▁", "first")
    vocab = {"<|endoftext|>": 0, "▁": 1, "h": 2, "i": 3}
    write_tokenizer(folder, {"add_prefix_space": False}, **parts)
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["model"] = json.loads(Tokenizer(models.BPE(vocab, [])).to_str())["model"]
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    converted = open_source(folder).tokenizer_json
    assert encode(converted, "hi hi") == [2, 3, 1, 2, 3]
    assert Tokenizer.from_str(converted).decode([1, 2, 3]) == " hi"


def test_tokens_that_do_not_fit_the_model_and_classes_that_split_otherwise_are_told(folder):
    write_tokenizer(folder, {"added_tokens_decoder": {"300": ADDED}, "split_special_tokens": True})
    assert [note[:68] for note in notes_on_ids(folder)] == [
        'the token "<|im_end|>" has the id 259, where tokenizer_config.json says 300'[:68],
        "split_special_tokens of tokenizer_config.json is not followed: special tokens"[:68],
    ]
    write_tokenizer(folder, {"additional_special_tokens": [f"<{i}>" for i in range(200)]})
    assert any("tokens that the model's 320 do not include, such as" in note for note in notes_on_ids(folder))
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    write_tokenizer(folder, {"tokenizer_class": "GPT2Tokenizer"}, pre_tokenizer=digits)
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["model"]["vocab"]["22"], saved["model"]["merges"] = 260, [*saved["model"]["merges"], ["2", "2"]]
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    assert notes_on_ids(folder) == ("transformers' GPT2Tokenizer gives other token ids than tokenizer.json, which is taken",)
    write_tokenizer(folder, {"added_tokens_decoder": {"259": "text"}})
    assert notes_on_ids(folder)[0].startswith("tokenizer.json is taken alone: what stands beside it can't be applied (")


@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize(
    "stated", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_bos_token": True, "add_eos_token": True}], ids=str
)
def test_the_template_wins_over_what_is_stated_beside_it(folder, template, stated):
    vocab, merges = byte_level()
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
        **stated,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ids = encode(open_source(folder).tokenizer_json, "hell")
    assert ids == [0] * template + [vocab["he"], vocab["ll"]]
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    assert ids == reference("hell").input_ids


def test_sentencepiece_models_are_converted(folder):
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("the quick brown fox jumps over the lazy dog\n" * 50 + "pack my box with five dozen liquor jugs\n" * 50)
    options = {"vocab_size": 310, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "tokenizer"), **options)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    source = open_source(folder)
    assert any("converted from tokenizer.model" in note for note in source.notes)
    trained = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in ("the quick fox", "five dozen  jugs", "über 😀"):
        assert encode(source.tokenizer_json, text)[-3:] == trained.encode(text)[-3:], text


def test_older_tokenizer_files_are_converted(folder):
    vocab, merges = byte_level()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    source = open_source(folder)
    reference = GPT2Tokenizer(vocab=vocab, merges=merges)
    assert any("converted from vocab.json and merges.txt" in note for note in source.notes)
    for text in TRICKY:
        assert encode(source.tokenizer_json, text) == reference(text).input_ids, text


def test_a_folder_without_a_tokenizer(folder):
    source = open_source(folder)
    assert source.tokenizer_json is None and any("token ids only" in note for note in source.notes)
    (folder / "tokenizer.model").write_bytes(b"not sentencepiece")
    source = open_source(folder)
    assert source.tokenizer_json is None and any("could not be converted" in note for note in source.notes)
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}))
    assert any("code of its own" in note for note in open_source(folder).notes)


@pytest.mark.parametrize("content", ["", "{}", "[", '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'])
def test_damaged_tokenizers(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(SourceError, match=r"tokenizer\.json: is not a tokenizer"):
        open_source(folder)
