"""The licence that a source states: its name as the hub or a GGUF file has it, and its text where the folder holds one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cupola.compiler.sources.files import member, read_text
from cupola.runtime.errors import SourceError

MAX_TEXT_BYTES = 1 << 20
_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_FIELD = re.compile(r"(license|license_name|license_link):\s*[\"']?(.+?)[\"']?\s*")


def folder_license(folder: Path) -> str:
    """The licence of a Hugging Face folder: the fields of its model card, and the text of its licence file; "" if it has neither."""
    card = _read(folder, "README.md")
    front = card.split("\n---", 1)[0].splitlines()[1:] if card.startswith("---\n") else []
    fields = {found[1]: found[2] for line in front if (found := _FIELD.fullmatch(line))}
    text = next((text for name in _FILES if (text := _read(folder, name))), "")
    return _joined((fields.get("license", ""), fields.get("license_name", ""), fields.get("license_link", "")), text)


def gguf_license(metadata: Mapping[str, Any]) -> str:
    """The licence in a GGUF file's metadata (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); "" if nothing."""
    values = (metadata.get(f"general.license{part}") for part in ("", ".name", ".link"))
    return _joined(tuple(value if isinstance(value, str) else "" for value in values), "")


def _joined(fields: tuple[str, ...], text: str) -> str:
    """A first line with the licence's name, such as `apache-2.0`, then its further names and its text."""
    name, *others = (field.strip() for field in fields)
    lines = [name or next(filter(None, others), ""), *(other for other in others if other), text.strip()]
    return "\n".join(filter(None, dict.fromkeys(lines))) + "\n" if any(lines) else ""


def _read(folder: Path, name: str) -> str:
    """A text file's content; "" if it is missing or can't be taken: a model is compiled without its licence too."""
    try:
        file = member(folder, name)
        return "" if file is None else read_text(file, MAX_TEXT_BYTES)
    except SourceError:
        return ""
