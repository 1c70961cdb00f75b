"""Says what JSON schemas ask for in words that the grammars can hold answers to.

pydantic writes some types in ways that XGrammar refuses or passes over: `Decimal` with a look-ahead, `HttpUrl` as a format with
lengths, small sets with `uniqueItems`; and others require names that `properties` lacks. Each is replaced by a schema that allows the
same, or less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Any

from cupola.runtime.structured.json_schema import Schema, subschemas

_DECIMAL = r"^(?!^[-+.]*$)[+-]?0*"  # how pydantic's pattern of a Decimal begins
_DECIMAL_ENDS = [  # of any size; of N places; of N digits; of N digits of which N may be places
    re.compile(re.escape(end).replace("N", r"(\d{1,3})"))
    for end in (
        r"\d*\.?\d*$",
        r"\d*\.?\d{0,N}0*$",
        r"(?:\d{0,N}|(?=[\d.]{1,N}0*$)\d*\.\d*0*$)",
        r"(?:\d{0,N}|(?=[\d.]{1,N}0*$)\d{0,N}\.\d{0,N}0*$)",
    )
]
_MOST_FORMS = 40  # of a number, by how many digits stand before its point
_URI = r"^[A-Za-z][A-Za-z0-9+.-]{0,15}://[A-Za-z0-9.-]{1,64}(:[0-9]{1,5})?([/?][A-Za-z0-9._~!$&'()*+,;=:@/?-]{0,%d})?$"
_SHORT_URI = r"^[a-z]{2,5}://[A-Za-z0-9.-]{1,%d}$"
_MOST_ORDERED = 5  # values, of which there are 326 orders
_URI_HEAD, _SHORT_URI_HEAD = 90, 8  # characters: of all but the last repetition
_SHORTEST_URI, _LONGEST_URI = 5, 512  # repeated more it is slow to match


def restate_schema(schema: Any) -> Any:
    """Changes a JSON schema into one that is easier to hold answers to: what that allows, `schema` allowed too. Returns it."""
    schemas = dict(subschemas(schema, "#"))
    for part in schemas.values():
        if isinstance(part, dict):
            _restate_unique(part, schemas)
            for restate in _RESTATEMENTS:
                restate(part)
    return schema


def _restate_pattern(schema: Schema) -> None:
    pattern = schema.get("pattern")
    if not isinstance(pattern, str) or not pattern.startswith(_DECIMAL):
        return
    for kind, end in enumerate(_DECIMAL_ENDS):
        if found := end.fullmatch(pattern.removeprefix(_DECIMAL)):
            schema["pattern"] = f"^[+-]?({'|'.join(_decimals(kind, *map(int, found.groups())))})$"


def _decimals(kind: int, first: int = 0, *others: int) -> list[str]:
    """Ways to write a number; `first` and `others` are what its pattern is limited to."""
    if kind == 0:
        return [r"[0-9]+(\.[0-9]*)?", r"\.[0-9]+"]
    if kind == 1:
        return [r"[0-9]+", *([rf"[0-9]*\.[0-9]{{1,{first}}}"] if first else [])]
    if kind == 2:
        return [rf"[0-9]{{1,{first}}}", *(rf"[0-9]{{{n}}}\.[0-9]{{1,{first - n}}}" for n in range(min(first, _MOST_FORMS)))]
    places = others[-1]
    return [rf"[0-9]{{1,{first}}}" if first else "0", *([rf"[0-9]{{0,{first}}}\.[0-9]{{1,{places}}}"] if places else [])]


def _restate_uri(schema: Schema) -> None:
    """A `uri` of limited length becomes a pattern, since a grammar can't count the characters of a format."""
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", _LONGEST_URI)
    limited = "minLength" in schema or "maxLength" in schema
    if schema.get("format") != "uri" or not limited or "pattern" in schema or not _are_whole(shortest, longest):
        return
    if shortest <= _SHORTEST_URI and longest > _SHORT_URI_HEAD:
        for word in ("format", "minLength", "maxLength"):
            schema.pop(word, None)
        is_long = longest > _URI_HEAD
        schema["pattern"] = _URI % (min(longest, _LONGEST_URI) - _URI_HEAD) if is_long else _SHORT_URI % (longest - _SHORT_URI_HEAD)


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
