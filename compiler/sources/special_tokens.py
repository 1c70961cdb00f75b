"""The tokens that chat templates know by name, such as `bos_token`, and the end token among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cupola.compiler.sources.files import member, read_json_object

SPECIAL_TOKENS_MAP = "special_tokens_map.json"
_USUAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GGUF_KEYS = {  # "seperator" is how the format spells it
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding", "cls_token": "cls",
    "mask_token": "mask",
}  # fmt: skip


def read_special_tokens(
    folder: Path, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any], tokenizer_json: str | None
) -> dict[str, str]:
    """A folder's named tokens, from the files that transformers reads them from: `tokenizer_config.json`, and in older folders
    `special_tokens_map.json`. `null` there means that there is none. What neither speaks of is taken from the ids in `config.json`.
    """
    path = None if "added_tokens_decoder" in tokenizer_config else member(folder, SPECIAL_TOKENS_MAP)
    given = {**tokenizer_config, **(read_json_object(path) if path else {})}
    ids = {name: config.get(f"{name}_id") for name in _USUAL if name not in given}
    tokens = {token_id: token for token, token_id in token_ids(tokenizer_json).items()} if tokenizer_json is not None else {}
    return {**_texts(given), **_by_id(ids, tokens)}


def gguf_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The named tokens of a GGUF file, by its `tokenizer.ggml.*_token_id`."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _GGUF_KEYS.items()}
    return _by_id(ids, dict(enumerate(tokens)) if isinstance(tokens, list) else {})


def token_ids(tokenizer_json: str) -> dict[str, int]:
    """Every token of a `tokenizer.json` that the tokenizers library has read without complaint."""
    from tokenizers import Tokenizer

    vocabulary: dict[str, int] = Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)
    return vocabulary


def add_end_token(
    generation: dict[str, Any], config: Mapping[str, Any], special_tokens: Mapping[str, str], tokenizer_json: str | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`generation_config.json`'s content with the tokenizer's own end token among those that stop, and a note if that is news."""
    vocab_size = config["vocab_size"]
    token = special_tokens.get("eos_token")
    if token is None or tokenizer_json is None:
        return generation, ()
    shown, token_id = json.dumps(token, ensure_ascii=False), token_ids(tokenizer_json).get(token)
    if token_id is None or token_id >= vocab_size:
        where = "is not in its vocabulary" if token_id is None else f"has the id {token_id}, and the model has {vocab_size} tokens"
        return generation, (f"the tokenizer's end token {shown} {where}: it does not stop an answer",)
    given = generation.get("eos_token_id", config.get("eos_token_id"))
    stops = [] if given is None else list(given) if isinstance(given, list) else [given]
    if token_id in stops:
        return generation, ()
    note = f"the tokenizer's end token {shown} ({token_id}) stops an answer too; the model's configuration names {stops or 'none'}"
    return {**generation, "eos_token_id": [*stops, token_id]}, (note,)


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    """Names that end in `_token`, which models may have of their own, and those of `extra_special_tokens`."""
    extra = given.get("extra_special_tokens")
    named = {name: value for name, value in given.items() if name.endswith("_token")} | (extra if isinstance(extra, dict) else {})
    values = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: value for name, value in values.items() if isinstance(value, str) and name.isidentifier()}


def _by_id(ids: Mapping[str, object], tokens: Mapping[int, object]) -> dict[str, str]:
    first = {name: each[0] if isinstance(each, list) and each else each for name, each in ids.items()}
    found = {name: tokens.get(token_id) for name, token_id in first.items() if type(token_id) is int}
    return {name: token for name, token in found.items() if isinstance(token, str)}
