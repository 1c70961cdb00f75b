"""Merges into a `tokenizer.json` what the files beside it change about its ids.

transformers reads further tokens from `tokenizer_config.json` (`added_tokens_decoder`, the named special tokens), from
`added_tokens.json` and `special_tokens_map.json`, and `add_prefix_space`. The file's own way to split text stays: classes such as
GPT2Tokenizer build another one, which is told where it gives other ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupola.compiler.sources.files import member, one_line

EXTRA_FILES = ("added_tokens.json", "special_tokens_map.json")
_PROBES = (
    "Hello, world! don't we'll I'M x=1;y=22;z=3333",
    "  two  spaces\n\n\tdef f(x):\r\n    return 0.5",
    "naïve e\u0301 日本語 Привет 😀 １２３",
    "word",
    " word",
)


def complete_tokenizer(folder: Path, text: str, config: Mapping[str, Any], vocab_size: int) -> tuple[str, tuple[str, ...]]:
    """The content of a folder's `tokenizer.json` with what stands beside it, and notes for people.

    Args:
        folder: the model's.
        text: the content of its `tokenizer.json`, which the tokenizers library reads.
        config: the content of `tokenizer_config.json`.
        vocab_size: how many tokens the model has.

    Raises:
        SourceError: a file is a link that leads out of the folder.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for name in EXTRA_FILES:
        member(folder, name)
    with _quiet_transformers():
        try:
            whole = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True).backend_tokenizer
        # What a class makes of odd values raises whatever came to hand.
        except Exception as error:  # noqa: BLE001
            return text, (f"tokenizer.json is taken alone: what stands beside it can't be applied ({one_line(error)})",)
        whole = Tokenizer.from_str(json.dumps(_with_prefix_space(json.loads(whole.to_str()), config.get("add_prefix_space"))))
        try:
            reference = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            expected = [reference(probe)["input_ids"] for probe in _PROBES]
        except Exception:  # noqa: BLE001  it wants code of its own, or a class that reads other files
            reference = None
    notes = _notes(whole, config, vocab_size)
    if reference is not None and expected != [whole.encode(probe).ids for probe in _PROBES]:
        notes.append(f"transformers' {type(reference).__name__} gives other token ids than tokenizer.json, which is taken")
    changed = whole.to_str() != Tokenizer.from_str(text).to_str()
    return str(whole.to_str()) if changed else text, tuple(notes)


def _notes(tokenizer: Any, config: Mapping[str, Any], vocab_size: int) -> list[str]:
    notes = []
    for token_id, token in (config.get("added_tokens_decoder") or {}).items():
        content, found = token["content"], tokenizer.token_to_id(token["content"])
        if str(found) != str(token_id):
            notes.append(f"the token {_shown(content)} has the id {found}, where tokenizer_config.json says {token_id}")
    outside = [token for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items() if token_id >= vocab_size]
    if outside:
        named = ", ".join(_shown(token) for token in sorted(outside)[:3])
        notes.append(f"the tokenizer has {len(outside)} tokens that the model's {vocab_size} do not include, such as {named}")
    if config.get("split_special_tokens"):
        notes.append("split_special_tokens of tokenizer_config.json is not followed: special tokens in a text are read as such")
    return notes


def _shown(token: str) -> str:
    return json.dumps(token, ensure_ascii=False)


def _with_prefix_space(tokenizer: dict[str, Any], stated: object) -> dict[str, Any]:
    """A tokenizer that puts a space before a text, or does not, as `add_prefix_space` states; None leaves it as it is."""
    if not isinstance(stated, bool):
        return tokenizer
    for step in _steps(tokenizer["pre_tokenizer"], "pretokenizers"):
        is_alone = step is tokenizer["pre_tokenizer"]  # in a sequence it would put a space before every piece
        if step["type"] == "ByteLevel" and (is_alone or not stated):
            step["add_prefix_space"] = stated
        if step["type"] == "Metaspace" and (step["prepend_scheme"] == "never") == stated:
            step["prepend_scheme"] = "first" if stated else "never"
            if not stated:
                _keep_first_space(tokenizer)
    normalizers = _steps(tokenizer["normalizer"], "normalizers")
    if not stated and any(step["type"] == "Prepend" for step in normalizers):
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [step for step in normalizers if step["type"] != "Prepend"]}
        _keep_first_space(tokenizer)
    return tokenizer


def _keep_first_space(tokenizer: dict[str, Any]) -> None:
    """Takes the step away that strips the space which was put before a text."""
    decoders = _steps(tokenizer["decoder"], "decoders")
    if tokenizer["decoder"]:
        tokenizer["decoder"] = {"type": "Sequence", "decoders": [step for step in decoders if step["type"] != "Strip"]}


def _steps(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a sequence, or the component alone."""
    if component is None:
        return []
    return list(component[key]) if component["type"] == "Sequence" else [component]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the advice that transformers prints on classes of tokenizers."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
