"""Structural tags as XGrammar has them: the formats that one is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Format = dict[str, Any]


def has_schema(part: Format) -> bool:
    """True for a format that is given by a JSON schema, in any style."""
    return "type" in part and "json_schema" in part


def parts_of(tag: object) -> Iterator[Format]:
    """The objects of a structural tag, the outer ones first, without what is inside of schemas. Whoever gets one may change it."""
    waiting = [tag]
    while waiting:
        part = waiting.pop()
        inner = list(part) if isinstance(part, list) else []
        if isinstance(part, dict):
            inner = [] if has_schema(part) else list(part.values())
            yield part
        waiting += inner
