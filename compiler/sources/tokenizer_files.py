"""The tokenizer of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cupola.compiler.sources.files import MAX_JSON_BYTES, member, one_line, read_text
from cupola.compiler.sources.tokenizer_extras import complete_tokenizer
from cupola.runtime.errors import SourceError

_SLOW_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model")


def check_tokenizer(text: str, file: object) -> str:
    """`text`, if the tokenizers library reads it as a `tokenizer.json`; SourceError otherwise."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(text)
    # The library raises bare Exception for every kind of damage.
    except Exception as error:  # noqa: BLE001
        raise SourceError(f"is not a tokenizer: {one_line(error)}", file=file, fix="download it again") from None
    return text


def _convert(folder: Path) -> str | None:
    """A `tokenizer.json` made by transformers from the older files of a folder, or None if it cannot."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return str(tokenizer.backend_tokenizer.to_str())
    # Each tokenizer class fails in its own way; without a tokenizer the model still takes token ids.
    except Exception:  # noqa: BLE001
        return None


def read_tokenizer(folder: Path, tokenizer_config: Mapping[str, Any], vocab_size: int) -> tuple[str | None, tuple[str, ...]]:
    """`tokenizer.json`'s content with what stands beside it, if there is a tokenizer, and notes for people.

    Args:
        folder: the model's.
        tokenizer_config: the content of `tokenizer_config.json`.
        vocab_size: how many tokens the model has.

    Raises:
        SourceError: `tokenizer.json` is damaged.
    """
    if path := member(folder, "tokenizer.json"):
        text = check_tokenizer(read_text(path, 4 * MAX_JSON_BYTES), path)
        return complete_tokenizer(folder, text, tokenizer_config, vocab_size)
    found = [name for name in _SLOW_FILES if member(folder, name)]
    if not found:
        return None, ("no tokenizer found: the model takes token ids only",)
    if tokenizer_config.get("auto_map"):
        return None, ("the tokenizer asks for code of its own (auto_map), which is never run: the model takes token ids only",)
    converted = _convert(folder)
    if converted is None:
        return None, (f"{' and '.join(found)} could not be converted: the model takes token ids only",)
    return converted, (f"tokenizer converted from {' and '.join(found)}",)
