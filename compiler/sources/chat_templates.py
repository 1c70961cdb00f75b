"""The chat templates of a model, by name: from a Hugging Face folder, or from a GGUF file's metadata.

"default" is the template for every chat, "tool_use" the one for chats with tools, as in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cupola.compiler.sources.files import member, read_json_object, read_text
from cupola.runtime.errors import SourceError

DEFAULT = "default"
FILE, FOLDER, PROCESSOR_FILE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
MAX_BYTES, MAX_TEMPLATES = 4 << 20, 32
_NAME = re.compile(r"\w[\w-]{0,63}", re.ASCII)
_GGUF = "tokenizer.chat_template"
Found = tuple[dict[str, str], tuple[str, ...]]  # the templates by name, and notes for people


def template_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that hold templates and nothing else."""
    further = folder / FOLDER
    names = sorted(path.name for path in further.glob("*.jinja")) if further.is_dir() else []
    paths = (*(member(folder, name) for name in (FILE, PROCESSOR_FILE)), *(member(further, name) for name in names))
    return tuple(path for path in paths if path)


def read_chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> Found:
    """A folder's templates: those in files of their own, else those in `tokenizer_config.json`, else a processor's.

    Raises:
        SourceError: there is a template that is neither a text nor a list of named texts.
    """
    files = {path: DEFAULT if path.name == FILE else path.stem for path in template_files(folder) if path.name != PROCESSOR_FILE}
    if files:
        return _checked({name: read_text(path, MAX_BYTES) for path, name in files.items()}, folder)
    given, file = tokenizer_config.get("chat_template"), folder / "tokenizer_config.json"
    if given is None and (path := member(folder, PROCESSOR_FILE)):
        given, file = read_json_object(path, 2 * MAX_BYTES).get("chat_template"), path
    return _checked(_by_name(given, file), file)


def gguf_chat_templates(metadata: Mapping[str, Any], file: Path) -> Found:
    """A GGUF file's templates: `tokenizer.chat_template` is the default, `tokenizer.chat_template.NAME` another.

    Raises:
        SourceError: one of them is no text.
    """
    found = {key: value for key, value in metadata.items() if key == _GGUF or key.startswith(f"{_GGUF}.")}
    for key, value in found.items():
        if not isinstance(value, str):
            raise SourceError(f"is {value!r:.40}, not a text", file=file, field=key, fix="convert the model again")
    return _checked({key[len(_GGUF) + 1 :] or DEFAULT: str(value) for key, value in found.items()}, file)


def _by_name(given: object, file: Path) -> dict[str, str]:
    if given is None or isinstance(given, str):
        return {DEFAULT: given} if isinstance(given, str) else {}
    entries = given if isinstance(given, list) else [given]
    pairs = [(entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None) for entry in entries]
    if not all(isinstance(name, str) and isinstance(template, str) for name, template in pairs):
        raise SourceError("is neither a text nor a list of named texts", file=file, field="chat_template", fix="download it again")
    return {str(name): str(template) for name, template in pairs}


def _checked(found: dict[str, str], file: Path) -> Found:
    """Templates without a byte order mark, under names that files can have. The only one is the default, whatever its name."""
    if len(found) > MAX_TEMPLATES or not all(_NAME.fullmatch(name) for name in found):
        what = f"has the chat templates {', '.join(map(repr, sorted(found))):.200}"
        raise SourceError(what, file=file, fix=f"name at most {MAX_TEMPLATES} in letters, digits, underscores and dashes")
    templates = {name: text.removeprefix("\ufeff") for name, text in found.items()}
    if not templates or DEFAULT in templates:
        return templates, ()
    names = ", ".join(sorted(templates))
    if len(templates) == 1:
        return {DEFAULT: next(iter(templates.values()))}, (f"the only chat template, {names}, is taken for all chats",)
    return templates, (f"of the chat templates {names} none is the default: a chat must name the one it wants",)
