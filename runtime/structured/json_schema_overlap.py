"""Proves that no value satisfies two JSON schemas: `oneOf` then says no more than `anyOf`, which is what grammars can express."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

MAX_BRANCHES, MAX_REFS = 64, 16
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}


def are_apart(branches: list[Any], schemas: Mapping[str, object]) -> bool:
    """True if each two of the branches exclude each other, as far as that is plain to see.

    Args:
        schemas: what `$ref` may name.
    """
    known = [_resolve(branch, schemas) for branch in branches]
    return len(known) <= MAX_BRANCHES and all(_exclude(a, b, schemas) for a, b in combinations(known, 2))


def has_type(value: object, name: object) -> bool:
    """True if a JSON value is of the type of that name, or there is no such type."""
    kinds = TYPES.get(name) if isinstance(name, str) else None
    return kinds is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)))


def types_of(schema: Mapping[str, Any]) -> list[Any]:
    """The types that a schema allows, given or told by its keywords; all of them if nothing is said."""
    given = schema.get("type")
    if given is None:
        return ["object"] if "properties" in schema else ["array"] if "items" in schema or "prefixItems" in schema else list(TYPES)
    return given if isinstance(given, list) else [given]


def _resolve(schema: object, schemas: Mapping[str, object]) -> Mapping[str, Any]:
    for _ in range(MAX_REFS):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = schemas.get(schema["$ref"])
    return schema if isinstance(schema, dict) else {}


def _exclude(a: Mapping[str, Any], b: Mapping[str, Any], schemas: Mapping[str, object]) -> bool:
    values_a, values_b = _values(a), _values(b)
    if values_a is not None and values_b is not None:
        return not any(_same(one, other) for one in values_a for other in values_b)
    for values, schema in ((values_a, b), (values_b, a)):
        if values is not None and not any(has_type(value, name) for value in values for name in types_of(schema)):
            return True
    kinds_a, kinds_b = ({"number" if name == "integer" else str(name) for name in types_of(schema)} for schema in (a, b))
    if kinds_a.isdisjoint(kinds_b):
        return True
    return kinds_a == kinds_b == {"object"} and (_exclude_by_names(a, b, schemas) or _lacks_a_name(a, b) or _lacks_a_name(b, a))


def _exclude_by_names(a: Mapping[str, Any], b: Mapping[str, Any], schemas: Mapping[str, object]) -> bool:
    """True if both require a property whose schemas exclude each other, such as a tag."""
    shared = _required(a) & _required(b) & _properties(a).keys() & _properties(b).keys()
    return any(_exclude(_resolve(_properties(a)[name], schemas), _resolve(_properties(b)[name], schemas), schemas) for name in shared)


def _lacks_a_name(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.get("additionalProperties") is False and "patternProperties" not in a and bool(_required(b) - _properties(a).keys())


def _required(schema: Mapping[str, Any]) -> set[str]:
    names = schema.get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _same(a: object, b: object) -> bool:
    """Equality as JSON has it: 1 is 1.0, and not true. Deeper inside, true counts as 1 too, which errs on the safe side."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)
