"""Says what JSON schemas ask for in words that the grammars can hold answers to.

pydantic writes some types in ways that XGrammar refuses or passes over: `Decimal` with a look-ahead, `HttpUrl` as a format with
lengths, sets with `uniqueItems`; and others require names that `properties` lacks. Each is replaced by a schema that allows the
same, or less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any

from cupola.runtime.json_schema import Schema, subschemas

_PATTERNS = {r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)$"}  # pydantic's Decimal, without the look-ahead
_URI = r"^[A-Za-z][A-Za-z0-9+.-]{0,15}://[A-Za-z0-9.-]{1,64}(:[0-9]{1,5})?([/?][A-Za-z0-9._~!$&'()*+,;=:@/?-]{0,%d})?$"
_MOST_ORDERED = 5  # values, of which there are 326 orders
_URI_HEAD, _SHORTEST_URI, _LONGEST_URI = 90, 5, 512  # characters: of all but the last repetition; repeated more it is slow to match


def restate_schema(text: str) -> str:
    """The text of a JSON schema that is easier to hold answers to: what it allows, `text` allows too."""
    schema = json.loads(text)
    schemas = dict(subschemas(schema, "#"))
    for part in schemas.values():
        if isinstance(part, dict):
            _restate_unique(part, schemas)
            for restate in _RESTATEMENTS:
                restate(part)
    return json.dumps(schema, ensure_ascii=False)


def _restate_pattern(schema: Schema) -> None:
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and pattern in _PATTERNS:
        schema["pattern"] = _PATTERNS[pattern]


def _restate_uri(schema: Schema) -> None:
    """A `uri` of limited length becomes a pattern, since a grammar can't count the characters of a format."""
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", _LONGEST_URI)
    limited = "minLength" in schema or "maxLength" in schema
    if schema.get("format") != "uri" or not limited or "pattern" in schema or not _are_whole(shortest, longest):
        return
    if shortest <= _SHORTEST_URI and longest > _URI_HEAD:
        for word in ("format", "minLength", "maxLength"):
            schema.pop(word, None)
        schema["pattern"] = _URI % (min(longest, _LONGEST_URI) - _URI_HEAD)


def _restate_required(schema: Schema) -> None:
    """Required names that `properties` lacks are put into it, with what further properties must be."""
    required, known, others = schema.get("required"), schema.get("properties", {}), schema.get("additionalProperties", True)
    if not isinstance(required, list) or not isinstance(known, dict) or others is False or "patternProperties" in schema:
        return
    missing = [name for name in required if isinstance(name, str) and name not in known]
    if missing and not any(word in schema for word in ("anyOf", "oneOf", "allOf", "$ref", "propertyNames")):
        schema["properties"] = known | {name: {} if others is True else others for name in missing}


def _restate_unique(schema: Schema, schemas: Mapping[str, object]) -> None:
    """A set of a few strings becomes a choice of all its orders; one of at most one item needs no check."""
    items, fewest, most = schema.get("items"), schema.get("minItems", 0), schema.get("maxItems", _MOST_ORDERED)
    if schema.get("uniqueItems") is not True or not _are_whole(fewest, most):
        return
    if most <= 1:
        del schema["uniqueItems"]
    if isinstance(items, dict) and isinstance(items.get("$ref"), str):
        items = schemas.get(items["$ref"])
    values = items.get("enum") if isinstance(items, dict) and items.keys() <= {"enum", "type", "title", "description"} else None
    if most <= 1 or not isinstance(values, list) or not all(isinstance(value, str) for value in values) or "prefixItems" in schema:
        return
    values = list(dict.fromkeys(values))
    if len(values) <= _MOST_ORDERED:
        sizes = range(fewest, min(most, len(values)) + 1)
        for word in ("uniqueItems", "items", "minItems", "maxItems"):
            schema.pop(word, None)
        schema["enum"] = [list(order) for size in sizes for order in permutations(values, size)]


def _are_whole(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


_RESTATEMENTS: tuple[Callable[[Schema], None], ...] = (_restate_pattern, _restate_uri, _restate_required)
