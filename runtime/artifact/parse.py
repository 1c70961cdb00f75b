"""JSON into frozen dataclasses, strictly: unknown fields, missing ones and other types are refused by name."""

from __future__ import annotations

import functools
import json
import reprlib
import types
import typing
from collections.abc import Callable
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


def parse(kind: Any, value: Any, file: Path) -> Any:
    """Builds `kind` (a dataclass, tuple, union or plain type) of what `load_json` gave. Raises ArtifactError."""
    try:
        return _reader(kind)(value)
    except _UnfitError as error:
        raise ArtifactError(str(error), file=file, field=error.field.lstrip(".") or None, fix=COMPILE_AGAIN) from None


class _UnfitError(Exception):
    """A value that does not fit; its field is put together on the way out, as there are thousands and hardly ever a fault."""

    field = ""


@functools.cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """A function that builds `kind`. It raises _UnfitError."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return functools.partial(_read_dataclass, kind, {f.name: _reader(hints[f.name]) for f in fields(kind)})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return functools.partial(_read_list, _reader(arguments[0]))
    return functools.partial(_read_plain, arguments if origin in (typing.Union, types.UnionType) else (kind,))


def _read_dataclass(kind: Any, readers: dict[str, Callable[[Any], Any]], value: Any) -> Any:
    if not isinstance(value, dict) or value.keys() != readers.keys():
        raise _UnfitError(f"expected the fields {', '.join(readers)}")
    values: dict[str, Any] = {}
    name = ""
    try:
        for name, read in readers.items():
            values[name] = read(value[name])
    except _UnfitError as error:
        error.field = f".{name}{error.field}"
        raise
    return kind(**values)


def _read_list(read: Callable[[Any], Any], value: Any) -> Any:
    if not isinstance(value, list):
        raise _UnfitError(f"{reprlib.repr(value)} is not what belongs here")
    values: list[Any] = []
    try:
        for item in value:
            values.append(read(item))
    except _UnfitError as error:
        error.field = f"[{len(values)}]{error.field}"
        raise
    return tuple(values)


def _read_plain(options: tuple[type, ...], value: Any) -> Any:
    if type(value) not in options:
        raise _UnfitError(f"{reprlib.repr(value)} is not what belongs here")
    if isinstance(value, str) and not value.isprintable():  # it may be shown in a terminal
        raise _UnfitError(f"{reprlib.repr(value)} holds characters that do not print")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found
