r"""Writes the patterns of JSON schemas anew, of what XGrammar gets right in regular expressions.

XGrammar 0.2.8 makes an automaton of a pattern that may allow too much: `bc` for `(ab+)?c`, where a group begins or ends with a
repetition; `bacb` for `(bc*|a){2,}` and `abb` for `a|(a|ab)`, where it can end in several places; bytes that are no character for
`[^a]`; and where more than 128 times is counted, `aab` for `a{129}|b`, and quotes and line breaks in a JSON string. So Python's
`re` reads each pattern, and what is written is made of groups, choices, `*`, `+`, counts, a single end (`()`), and characters that
a JSON string may hold as they are, those of the same length in UTF-8 in a class of their own; large counts become rules. `\d` and
the like stand for what they mean to both of ECMAScript and Python: a digit is one of ASCII's, and what is no digit is none of
Unicode's.

Strings match a pattern in whole, though JSON Schema would be content with a match somewhere inside.
"""

from __future__ import annotations

import re
from re import _constants as ops
from typing import Any

from cupola.runtime.structured.character_sets import Characters, as_in_expressions, complement, join_classes, subtract, write_set
from cupola.runtime.structured.json_schema import Schema, subschemas
from cupola.runtime.structured.regular_expressions import END, REFUSED, Item, Items, alternatives, characters_of, counts_too_much, parse

_ESCAPED: Characters = ((0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\")))  # what may not stand in a JSON string as it is
_CARET: Characters = ((ord("^"), ord("^")),)
_AS_RULES = "é{0}"  # nothing; XGrammar makes rules, and no automaton, of a pattern with a character out of ASCII
_BEGINNINGS, _ENDS = (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING), (ops.AT_END, ops.AT_END_STRING)
_ONLY_ECMASCRIPT = re.compile(r"(?P<category>\\[dDwWsS])-|(?P<group>\(\?)<(?![=!])|\\.", re.DOTALL)  # such as [\w-.] and (?<name>…)


class PatternError(ValueError):
    """Raised for a part of a pattern that can't be written as a grammar."""


def rewrite_patterns(schema: Any) -> Any:
    """Writes all patterns of a schema anew, in place. Returns it. Raises PatternError."""
    for _, part in list(subschemas(schema, "#")):
        if isinstance(part, dict):
            if isinstance(part.get("pattern"), str):
                part["pattern"] = write_pattern(part["pattern"])
            if isinstance(part.get("patternProperties"), dict):
                _rewrite_names(part)
    return schema


def _rewrite_names(schema: Schema) -> None:
    named = schema["patternProperties"]
    schema["patternProperties"] = {write_pattern(pattern): inner for pattern, inner in named.items()}
    if len(schema["patternProperties"]) < len(named):
        raise PatternError("two patterns of patternProperties say the same")


def write_pattern(pattern: str) -> str:
    """A regular expression for the strings that `pattern` matches in whole and that JSON need not escape. Raises PatternError."""
    try:
        written = _write_items(*_parse(pattern), is_first=True, is_last=True) + END
    except (re.error, OverflowError, RecursionError, PatternError) as error:
        raise PatternError(f"the pattern {pattern!r:.60} can't be used: {error}") from None
    return join_classes(written.replace(END, "")) + _AS_RULES if counts_too_much(written) else written


def _parse(pattern: str) -> tuple[Items, int]:
    try:
        return parse(pattern)
    except re.error:
        return parse(_ONLY_ECMASCRIPT.sub(_as_python, pattern))


def _as_python(found: re.Match[str]) -> str:
    if found["category"]:
        return found["category"] + r"\-"
    return found["group"] + "P<" if found["group"] else found[0]


def _write_items(items: Items, flags: int, *, is_first: bool, is_last: bool) -> str:
    last = len(items) - 1
    written = (_write_item(item, flags, is_first=is_first and i == 0, is_last=is_last and i == last) for i, item in enumerate(items))
    return "".join(written)


def _write_item(item: Item, flags: int, *, is_first: bool, is_last: bool) -> str:
    kind, argument = item
    characters = _characters_of(item, flags)
    if characters is not None:
        return _write_class(characters)
    if kind is ops.AT and ((is_first and argument in _BEGINNINGS) or (is_last and argument in _ENDS)):
        return ""
    if ways := alternatives(item, flags):
        written = "|".join(_write_items(*way, is_first=is_first, is_last=is_last) for way in ways)
        return f"({written})" if written else ""
    if kind in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        fewest, most, items = argument
        return _repeat(_write_items(list(items), flags, is_first=False, is_last=False), fewest, most)
    raise PatternError(f"{REFUSED.get(kind, f'what `re` calls {kind}')} is not supported")


def _characters_of(item: Item, flags: int) -> Characters | None:
    """The characters that match an item in ASCII's categories and in Unicode's, without those that JSON must escape."""
    characters = characters_of(item, flags | re.ASCII)
    if characters is None:
        return None
    if flags & re.IGNORECASE or (characters and characters[-1][1] > 0x7F):
        characters = subtract(characters, complement(characters_of(item, flags & ~re.ASCII) or ()))
    return subtract(characters, _ESCAPED)


def _write_class(characters: Characters) -> str:
    if not characters:
        raise PatternError("characters that JSON must escape are not supported")
    first, last = characters[0][0], characters[-1][1]
    if first == last:
        return chr(first) if chr(first).isalnum() and first < 0x80 else f"\\u{{{first:x}}}"
    if any(start == ord("^") for start, _ in characters):  # XGrammar's rules, of XML-styled schemas, would take it for a negation
        return f"(\\^|{_write_class(subtract(characters, _CARET))})"
    return as_in_expressions(write_set(characters))


def _repeat(written: str, fewest: int, most: Any) -> str:
    if not written or most == 0:
        return ""
    if fewest < 2 and most is ops.MAXREPEAT:
        return f"({written}){'*+'[fewest]}"
    return f"({written}{END}){{{fewest},{'' if most is ops.MAXREPEAT else most}}}"
