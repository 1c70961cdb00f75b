"""Which JSON schemas the grammars hold answers to in full (JSON Schema 2020-12).

XGrammar passes over what it can't express in silence, and an answer would then parse and not validate. Such schemas are
refused instead, with the place and the keyword; or the keyword is left out for the grammar, and the answer checked when it is
there (`schema_checker.py`). What XGrammar warns of is refused by `grammar_worker.py`, and what `json_schema_pattern.py` can't write
of a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cupola.runtime.structured.json_schema_overlap import are_apart, has_type, types_of

Schema = dict[str, Any]
KEYWORDS = {  # by the type that they speak of
    "string": ("minLength", "maxLength", "pattern"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("minItems", "maxItems", "prefixItems", "items"),
    "object": ("minProperties", "maxProperties", "required", "propertyNames", "patternProperties", "additionalProperties", "properties"),
}
TELLING = ("prefixItems", "items", "properties", "additionalProperties")  # of a type that isn't given
CHOOSING = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")  # the first of these decides alone
UNSUPPORTED = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
    *("dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"),
)
ASSERTING = {"type", *CHOOSING, *(word for words in KEYWORDS.values() for word in words)}
BROKEN_FORMATS = ("json-pointer", "relative-json-pointer")  # XGrammar lets quotes into them
# What a JSON string must escape, and XGrammar's patterns do not: a quote or backslash as itself, control characters.
CONTROL = r"[\x00-\x1f]|\\(?:[nrtfv0c]|x[01]|u00[01]|u\{)"
RAW = re.compile(CONTROL + r"""|"|\\(?:\\|x22|x5[cC]|u0022|u005[cC])""")
AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[1-9bB])")  # what looks at other places of a string than its own
CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


class SchemaError(ValueError):
    """Raised for a part of a schema that is not supported; says where it is."""


@dataclass(frozen=True)
class Problem:
    """A part of a schema that a grammar would get wrong.

    Args:
        text: for errors.
        loosening: keywords without which the grammar has it right and allows no less: each with another name for it, or None to drop it.
            Empty where nothing helps.
    """

    text: str
    loosening: Schema = field(default_factory=dict)


def check_schema(schema: Schema | bool) -> None:
    """Raises SchemaError if answers that follow the grammar of `schema` might not validate."""
    schemas = dict(subschemas(schema, "#"))
    for path, part in schemas.items():
        if problem := _find_problem(path, part, schemas):
            raise SchemaError(f"at {path[:200]}: {problem.text}")


def loosen_schema(schema: Schema | bool) -> list[str]:
    """Takes out of `schema` what grammars can't hold answers to, as far as what is left allows all that it allowed.

    Returns:
        What was taken out, and where.
    """
    schemas, left_out = dict(subschemas(schema, "#")), []
    for path, part in schemas.items():
        while isinstance(part, dict) and (problem := _find_problem(path, part, schemas)) and problem.loosening:
            for word, other in problem.loosening.items():
                value = part.pop(word)
                if other is not None:
                    part[other] = value
            left_out.append(f"at {path[:200]}: {problem.text}")
    return left_out


def subschemas(schema: object, path: str) -> Iterator[tuple[str, object]]:
    """A schema and those inside of it, with their places."""
    waiting: list[tuple[str, object]] = [(path, schema)]
    while waiting:
        path, part = waiting.pop()
        yield path, part
        if not isinstance(part, dict):
            continue
        for word in ("properties", "patternProperties", "$defs", "definitions"):
            if isinstance(part.get(word), dict):
                waiting += [(f"{path}/{word}/{name}", inner) for name, inner in part[word].items()]
        for word in ("items", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"):
            waiting += [(f"{path}/{word}", part[word])] if word in part else []
        for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            if isinstance(part.get(word), list):
                waiting += [(f"{path}/{word}/{i}", inner) for i, inner in enumerate(part[word])]


def _find_problem(path: str, schema: object, schemas: dict[str, object]) -> Problem | None:
    """The part of one schema, without those inside of it, that a grammar might get wrong."""
    if not isinstance(schema, dict):
        return None
    is_string = path.endswith("/propertyNames")  # only strings come to it
    return _find_unsupported(schema) or _find_own_problem(schema, is_string) or _find_misfit(schema, schemas)


def _find_unsupported(schema: Schema) -> Problem | None:
    word = next((word for word in UNSUPPORTED if schema.get(word, False) is not False), None)
    return Problem(f"{word} is not supported", {word: None}) if word else None


def _find_own_problem(schema: Schema, is_string: bool) -> Problem | None:
    choosing = next((word for word in CHOOSING if word in schema), None)
    if choosing in ("const", "enum"):
        return _find_odd_value(schema, choosing)
    if choosing is not None:
        others = sorted(ASSERTING.intersection(schema) - {choosing})
        text = f"{others[0]} beside {choosing} is not supported; write it into what {choosing} names" if others else ""
        return Problem(text, dict.fromkeys(others)) if others else None
    return (None if is_string else _find_untyped(schema)) or _find_string_problem(schema) or _find_object_problem(schema)


def _find_odd_value(schema: Schema, choosing: str) -> Problem | None:
    others = sorted(ASSERTING.intersection(schema) - {choosing, "type"})
    if others:
        return Problem(f"{others[0]} beside {choosing} is not supported", dict.fromkeys(others))
    values = [schema["const"]] if choosing == "const" else schema["enum"] if isinstance(schema["enum"], list) else []
    for value in values:
        if "type" in schema and not any(has_type(value, name) for name in types_of(schema)):
            return Problem(f"the value {value!r:.60} of {choosing} isn't of the type {schema['type']!r:.60}")
        if _has_wide_integer(value):
            return Problem(f"whole numbers of {choosing} must fit into 64 bits; write {value!r:.60} as a string")
    return None


def _has_wide_integer(value: object) -> bool:
    """True if a whole number in `value` is one that XGrammar rounds to a float."""
    if isinstance(value, dict | list):
        return any(map(_has_wide_integer, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _find_untyped(schema: Schema) -> Problem | None:
    if "type" in schema or any(word in schema for word in TELLING):
        return None
    words = [word for words in KEYWORDS.values() for word in words if word in schema]
    return Problem(f"{words[0]} needs a type beside it", dict.fromkeys(words)) if words else None


def _find_string_problem(schema: Schema) -> Problem | None:
    if schema.get("format") in BROKEN_FORMATS:
        return Problem(f"the format {schema['format']!r} is not supported", {"format": None})
    names = schema["patternProperties"] if isinstance(schema.get("patternProperties"), dict) else ()
    for pattern in (schema.get("pattern"), *names):
        what = _find_pattern_problem(pattern) if isinstance(pattern, str) else None
        if what is not None:
            loosening: Schema = {"pattern": None} if pattern == schema.get("pattern") else {}
            return Problem(f"the pattern {pattern!r:.60} has {what}, which is not supported", loosening)
    return None


def _find_object_problem(schema: Schema) -> Problem | None:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    for name in required if isinstance(required, list) else ():
        if isinstance(name, str) and name not in known:
            return Problem(f"required names {name!r:.60}, which properties lacks")
    if "propertyNames" in schema and known:
        return Problem("propertyNames beside properties is not supported", {"propertyNames": None})
    fewest, others = schema.get("minProperties"), schema.get("additionalProperties", not known) is not False
    num_required = len(required) if isinstance(required, list) else 0
    if isinstance(fewest, int) and fewest > num_required + 1 and (others or "patternProperties" in schema):
        return Problem("minProperties is not supported where names are free: one might come twice", {"minProperties": None})
    return None


def _find_misfit(schema: Schema, schemas: dict[str, object]) -> Problem | None:
    """The fault in a schema's use of others, if any."""
    ref = schema.get("$ref", "#")
    if isinstance(schema.get("oneOf"), list) and not are_apart(schema["oneOf"], schemas):
        text = "oneOf of what may hold for the same value is not supported; use anyOf, or a required property whose const differs"
        return Problem(text, {"oneOf": "anyOf"})
    if ref in schemas:
        return None
    return Problem(f"$ref is {ref!r:.60}, which is no schema in this one; give its place, such as '#/$defs/name'")


def _find_pattern_problem(pattern: str) -> str | None:
    """In classes XGrammar leaves quotes and backslashes out, but not control characters."""
    outside = CLASS.sub("", pattern)
    inside = "".join(found for found in CLASS.findall(pattern) if not found.startswith("[^"))
    if RAW.search(outside) or re.search(CONTROL, inside):
        return "characters that JSON must escape"
    return "a look-around, a back reference or a word boundary" if AROUND.search(outside) else None
