"""Reads `manifest.json`, strictly: unknown fields, missing ones and other types are refused by name."""

from __future__ import annotations

import functools
import json
import reprlib
import stat
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cupola.runtime.artifact.check import check_manifest
from cupola.runtime.artifact.manifest import COMPILE_AGAIN, FORMAT_VERSION, Manifest
from cupola.runtime.errors import ArtifactError

MAX_MANIFEST_BYTES = 64 << 20


def read_manifest(file: Path) -> str:
    """The manifest's text. Only a regular file is opened: a pipe would never end."""
    fix = "is this an artifact's folder? `cupola compile` makes one"
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError("is not a manifest", file=file, fix=fix)
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        raise ArtifactError(f"can't be read: {reason}", file=file, fix=fix) from None


def parse_manifest(text: str, file: Path) -> Manifest:
    """Reads what `Manifest.to_json` wrote, and checks that it makes sense. Raises ArtifactError naming `file` and the field."""
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"is not JSON: {error}", file=file, fix=COMPILE_AGAIN) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        fix = "upgrade cupola" if isinstance(version, int) and version > FORMAT_VERSION else COMPILE_AGAIN
        found = f"is {reprlib.repr(version)}, this cupola reads {FORMAT_VERSION}"
        raise ArtifactError(found, file=file, field="format_version", fix=fix)
    manifest: Manifest = _parse(Manifest, data, file, "")
    check_manifest(manifest, file)
    return manifest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _parse(kind: Any, value: Any, file: Path, field: str) -> Any:
    """Builds `kind` (a dataclass, tuple, union or plain type) from JSON, strictly."""
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, file, field)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(arguments[0], item, file, f"{field}[{i}]") for i, item in enumerate(value))
    options = arguments if origin in (typing.Union, types.UnionType) else (kind,)
    if not any(type(value) is option for option in options):
        raise ArtifactError(f"{reprlib.repr(value)} is not what belongs here", file=file, field=field, fix=COMPILE_AGAIN)
    if isinstance(value, str) and not value.isprintable():  # it may be shown in a terminal
        raise ArtifactError(f"{reprlib.repr(value)} holds characters that do not print", file=file, field=field, fix=COMPILE_AGAIN)
    return value


def _parse_dataclass(kind: Any, value: Any, file: Path, field: str) -> Any:
    names = [f.name for f in fields(kind)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise ArtifactError(f"expected the fields {', '.join(names)}", file=file, field=field or None, fix=COMPILE_AGAIN)
    hints = _hints(kind)
    return kind(**{name: _parse(hints[name], value[name], file, f"{field}.{name}".lstrip(".")) for name in names})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
