"""The tokenizer inside a GGUF file as a `tokenizer.json`.

transformers converts it; what its conversion leaves out is added here, after llama.cpp's vocabulary code
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp) and the tokenizers that these models were trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cupola.compiler.sources.files import one_line
from cupola.compiler.sources.gguf_header import RECONVERT
from cupola.compiler.sources.tokenizer_files import check_tokenizer
from cupola.runtime.errors import SourceError

_PREFIX = "tokenizer.ggml."
_CONTROL = 3
_DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_LLAMA3 = ("llama3", "llama-v3", "llama-bpe")
_WHOLE_WORDS_FIRST = (*_LLAMA3, "tekken")
_PLAIN = ("gpt-2", "gpt2", "default", "mpt", "olmo", "phi-2", "jina-en")
_SPLIT_AS = {"glm4": "llama3", "chatglm-bpe": "llama3", "stablelm2": "qwen2", "hunyuan": "qwen2", "solar-open": "qwen2"}
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
)
_SPLITS = {"deepseek-v3": _DEEPSEEK3, "hunyuan-dense": _DEEPSEEK3}
"""Ways to split words, one after another, that transformers' conversion does not know; `_SPLIT_AS` has other names of those it knows."""
_KINDS = ("gpt2", "llama", "gemma4")
_END_OF_TURN = (
    "<turn|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|EOT|>",
)


def _strings(metadata: Mapping[str, Any], key: str, file: object, required: bool) -> list[str]:
    values = metadata.get(_PREFIX + key)
    if values is None and not required:
        return []
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise SourceError("is not a list of texts", file=file, field=_PREFIX + key, fix=RECONVERT)
    return values


def _fields(metadata: Mapping[str, Any], file: object) -> dict[str, Any]:
    """The tokenizer's fields by the names that transformers' conversion takes, each as long as the vocabulary."""
    tokens = _strings(metadata, "tokens", file, required=True)
    fields: dict[str, Any] = {
        "tokens": tokens,
        "tokenizer_type": metadata[f"{_PREFIX}model"],
        "pre_tokenizer_type": _SPLIT_AS.get(pre, pre) if isinstance(pre := metadata.get(f"{_PREFIX}pre"), str) else pre,
    }
    if merges := _strings(metadata, "merges", file, required=False):
        fields["merges"] = merges
    for key in ("scores", "token_type"):
        values = metadata.get(_PREFIX + key)
        if values is not None and (not isinstance(values, list) or len(values) != len(tokens)):
            raise SourceError(
                f"does not have one entry for each of the {len(tokens)} tokens", file=file, field=_PREFIX + key, fix=RECONVERT
            )
        if values is not None:
            fields[key] = values
    return fields


def _special_tokens(metadata: Mapping[str, Any], tokens: list[str], file: object) -> dict[str, str]:
    keys = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
    found = {}
    for name, key in keys.items():
        token_id = metadata.get(_PREFIX + key)
        if token_id is None:
            continue
        if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            raise SourceError(f"is {token_id!r:.40}, not one of the {len(tokens)} tokens", file=file, field=_PREFIX + key, fix=RECONVERT)
        found[name] = tokens[token_id]
    return found


def _adds(metadata: Mapping[str, Any], which: str) -> bool:
    """True if text gets a `bos` or an `eos`; files without the field have llama.cpp's default."""
    if metadata[f"{_PREFIX}model"] == "gemma4":
        return False  # its chat template writes `<bos>`, and its own tokenizer adds none, whatever llama.cpp does
    stated = metadata.get(f"{_PREFIX}add_{which}_token")
    if stated is not None:
        return bool(stated)
    return which == "bos" and (metadata[f"{_PREFIX}model"] == "llama" or metadata.get(f"{_PREFIX}pre") in _WHOLE_WORDS_FIRST)


def _refine(backend: dict[str, Any], metadata: Mapping[str, Any], num_tokens: int) -> None:
    """Correct a `tokenizer.json` where the conversion and the model's own tokenizer differ."""
    pre = metadata.get(f"{_PREFIX}pre")
    # The conversion's classes add their own default special tokens, which would get ids that the model does not have.
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < num_tokens]
    if pre in _WHOLE_WORDS_FIRST:
        backend["model"]["ignore_merges"] = True
    merges = backend["model"].get("merges")
    if merges and not any(" " in part for pair in merges for part in pair):  # strings load faster than pairs: 15 ms of 49,000
        backend["model"]["merges"] = [" ".join(pair) for pair in merges]
    if pre in _SPLITS:
        steps = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in _SPLITS[pre]]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        backend["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*steps, byte_level]}
    if pre in _DIGIT_SPLITTERS:
        backend["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, backend["pre_tokenizer"]],
        }
    if metadata[f"{_PREFIX}model"] == "llama":
        _put_spaces(backend, metadata.get(f"{_PREFIX}add_space_prefix") is not False)


def _put_spaces(backend: dict[str, Any], add_prefix: bool) -> None:
    """Spaces as SentencePiece and llama.cpp have them: with a prefix, every text between special tokens gets one more in front.

    The conversion's Metaspace gives none to a text that begins with a space.
    """
    prefix = [{"type": "Prepend", "prepend": "▁"}] if add_prefix else []
    backend["pre_tokenizer"] = None
    backend["normalizer"] = {"type": "Sequence", "normalizers": [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    if not add_prefix:
        backend["decoder"]["decoders"] = [step for step in backend["decoder"]["decoders"] if step["type"] != "Strip"]


def convert_tokenizer(metadata: Mapping[str, Any], architecture: str, file: object) -> tuple[str | None, tuple[str, ...]]:
    """The tokenizer as the content of a `tokenizer.json`, and notes for people.

    Args:
        metadata: the file's metadata.
        architecture: `general.architecture`.
        file: the file to name in errors.

    Returns:
        None in place of the content if the file has no tokenizer, or one of a kind that is not converted.

    Raises:
        SourceError: its fields contradict one another.
    """
    kind = metadata.get(f"{_PREFIX}model")
    if kind not in _KINDS:
        return None, (f"no tokenizer of a known kind in the file ({kind!r:.40}): the model takes token ids only",)
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    fields = _fields(metadata, file)
    special = _special_tokens(metadata, fields["tokens"], file)
    try:
        converted, _ = convert_gguf_tokenizer(architecture, fields)
        adds = {
            "add_bos_token": _adds(metadata, "bos") and "bos_token" in special,
            "add_eos_token": _adds(metadata, "eos") and "eos_token" in special,
        }
        wrapped = PreTrainedTokenizerFast(tokenizer_object=converted, **special, **adds)
    # The conversion checks nothing; what a contradictory vocabulary raises depends on where it is met first.
    except Exception as error:  # noqa: BLE001
        raise SourceError(f"cannot be made a tokenizer: {one_line(error)}", file=file, field="tokenizer.ggml", fix=RECONVERT) from None
    backend = json.loads(wrapped.backend_tokenizer.to_str())
    _refine(backend, metadata, len(fields["tokens"]))
    pre = fields["pre_tokenizer_type"]
    known = kind != "gpt2" or pre in (None, *_PLAIN, *_DIGIT_SPLITTERS, *_SPLITS) or pre in GGUF_PRE_TOKENIZER_SPLITS
    notes = (
        ()
        if known
        else (f"the tokenizer splits words as GPT-2's does, since its own way ({pre!r:.40}) is not known: token ids may differ",)
    )
    return check_tokenizer(json.dumps(backend, ensure_ascii=False), file), notes


def stop_token_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Every token that ends an answer: those that the file names, and control tokens that are known to."""
    named = [metadata.get(_PREFIX + key) for key in ("eos_token_id", "eot_token_id", "eom_token_id")]
    tokens, types = metadata.get(f"{_PREFIX}tokens"), metadata.get(f"{_PREFIX}token_type")
    if isinstance(tokens, list) and isinstance(types, list):
        named += [
            token_id
            for token_id, (token, kind) in enumerate(zip(tokens, types, strict=False))
            if kind == _CONTROL and token in _END_OF_TURN
        ]
    return list(dict.fromkeys(token_id for token_id in named if isinstance(token_id, int)))
