"""A GGUF model in several files, `NAME-00001-of-00003.gguf` and so on, as llama.cpp's gguf-split writes it: the first has the metadata."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from cupola.compiler.sources.gguf_header import GGUFHeader, read_header
from cupola.runtime.errors import SourceError

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_FIX = "download every part into one folder, under its own name"


def split_files(path: Path) -> tuple[Path, ...]:
    """The files of the model that `path` is a part of, in order, by its name; `path` alone if it is whole. They need not exist."""
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return (path,)
    return tuple(path.with_name(f"{match['name']}-{number:05}-of-{match['count']}.gguf") for number in range(1, int(match["count"]) + 1))


def read_parts(path: Path) -> tuple[GGUFHeader, ...]:
    """The checked headers of all files of a model; the first has the metadata of the whole.

    Raises:
        SourceError: a part is missing, damaged, or is not the part that its name says.
        UnsupportedError: as `read_header`.
    """
    files = split_files(path)
    if missing := next((file for file in files if not file.is_file()), None):
        raise SourceError("is missing", file=missing, fix=_FIX)
    parts = tuple(read_header(file) for file in files)
    for number, part in enumerate(parts):
        count = part.metadata.get("split.count", 0)
        if count in (0, 1) and len(files) == 1:
            continue
        if count != len(files):
            problem = f"the file is one of {count!r:.20}, and its name says {len(files)}"
            raise SourceError(problem, file=part.path, field="split.count", fix=_FIX)
        if part.metadata.get("split.no") != number:
            raise SourceError(f"is {part.metadata.get('split.no')!r:.20}, not {number}", file=part.path, field="split.no", fix=_FIX)
    return parts


def joined(parts: tuple[GGUFHeader, ...]) -> GGUFHeader:
    """The header of the whole: the first file's metadata and the tensors of all, whose data lie in their own files.

    Raises:
        SourceError: tensors are missing, or in two files.
    """
    tensors = tuple(info for part in parts for info in part.tensors)
    stated = parts[0].metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors) and len(parts) > 1:
        raise SourceError(f"is {stated!r:.20}, and there are {len(tensors)}", file=parts[0].path, field="split.tensors.count", fix=_FIX)
    names = [info.name for info in tensors]
    if doubled := next((name for name in sorted(set(names)) if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise SourceError("is in two files", file=parts[0].path, field=doubled, fix=_FIX)
    return replace(parts[0], tensors=tensors)
