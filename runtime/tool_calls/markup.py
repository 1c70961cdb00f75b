"""Arguments of calls as some models write them: an element each, with text in it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cupola.runtime.tool_calls.calls import MAX_DEPTH, is_deeper
from cupola.runtime.tool_calls.formats import Markup

MAX_BEGIN_CHARACTERS = 256
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}  # what Jinja writes, and models learnt


def read_markup(markup: Markup, ends: tuple[str, ...], text: str) -> tuple[dict[str, str] | None, int] | None:
    """The arguments at the beginning of `text`, each as text, and how many characters they take.

    None if more text is needed; no arguments if this is no markup. They go up to `markup.last`, or to one of `ends`.
    """
    arguments: dict[str, str] = {}
    at = 0
    while True:
        at += len(text) - at - len(text[at:].lstrip())
        found = markup.begin.match(text, at)
        if found is None:
            break
        end = text.find(markup.end, found.end())
        if end < 0:
            return None
        value = text[found.end() : end]
        arguments[found[1]] = value.removeprefix("\n").removesuffix("\n")
        at = end + len(markup.end)
    rest = text[at : at + MAX_BEGIN_CHARACTERS + 1]
    if any(rest.startswith(last) for last in ((markup.last,) if markup.last else ends)):
        return arguments, at + len(markup.last)
    return None if len(rest) <= MAX_BEGIN_CHARACTERS and rest[:1] in ("", "<") else (None, 0)


def write_arguments(arguments: Mapping[str, str], schema: Mapping[str, object]) -> str:
    """The arguments as the text of a JSON object. What the schema lets be a string is one; anything else is JSON if it can be."""
    properties = schema.get("properties")
    types = {name: _types(properties.get(name)) if isinstance(properties, Mapping) else frozenset() for name in arguments}
    return json.dumps({name: _read_value(text, types[name]) for name, text in arguments.items()}, ensure_ascii=False)


def _read_value(text: str, types: frozenset[str]) -> object:
    word = _PYTHON_WORDS.get(text.strip(), text.strip())
    if "string" in types and not (word == "null" and "null" in types):
        return text
    try:
        value: object = json.loads(word)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return text if is_deeper(value, MAX_DEPTH) else value


def _types(schema: object) -> frozenset[str]:
    """The types that a schema names, itself or by its alternatives."""
    if not isinstance(schema, Mapping):
        return frozenset()
    given = schema.get("type")
    types = {given} if isinstance(given, str) else {name for name in given if isinstance(name, str)} if isinstance(given, list) else set()
    for key in ("anyOf", "oneOf"):
        alternatives = schema.get(key)
        types.update(*(_types(entry) for entry in alternatives) if isinstance(alternatives, list) else ())
    if isinstance(schema.get("enum"), list) and all(isinstance(entry, str) for entry in schema["enum"]):
        types.add("string")
    return frozenset(types)
