"""JSON into frozen dataclasses, strictly: unknown fields, missing ones and other types are refused by name."""

from __future__ import annotations

import functools
import json
import reprlib
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from cupola.runtime.artifact.manifest import COMPILE_AGAIN
from cupola.runtime.errors import ArtifactError


def load_json(text: str, file: Path) -> Any:
    """The values that the text holds. Raises ArtifactError naming `file`."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"is not JSON: {error}", file=file, fix=COMPILE_AGAIN) from None


def parse(kind: Any, value: Any, file: Path, field: str = "") -> Any:
    """Builds `kind` (a dataclass, tuple, union or plain type) of what `load_json` gave. Raises ArtifactError."""
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, file, field)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(parse(arguments[0], item, file, f"{field}[{i}]") for i, item in enumerate(value))
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
    return kind(**{name: parse(hints[name], value[name], file, f"{field}.{name}".lstrip(".")) for name in names})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found
