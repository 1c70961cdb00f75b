"""Regular expressions as Python's `re` reads them: their characters, how they begin, and what can make a match longer."""

from __future__ import annotations

import re
import warnings
from re import _constants as ops
from re import _parser as parser  # private to `re`, and the only reader of its syntax that knows all of it
from typing import Any

from cupola.runtime.structured.character_sets import ALL, Characters, complement, find_matches, in_any_case, make_set

Item = tuple[Any, Any]  # what `re` has parsed: an operation and its arguments
Items = list[Item]
REFUSED = {  # what is no matter of a grammar, in words
    ops.AT: "an anchor or a word boundary",
    ops.ASSERT: "a look-ahead or look-behind",
    ops.ASSERT_NOT: "a negative look-ahead or look-behind",
    ops.GROUPREF: "a back reference",
    ops.GROUPREF_EXISTS: "a condition on a group",
    ops.ATOMIC_GROUP: "an atomic group",
    ops.POSSESSIVE_REPEAT: "a possessive repetition",
}
END = "()"  # behind it an expression's automaton has one end, where nothing goes on: XGrammar 0.2.8 gets no others right
_MOST_COUNTED = 128  # more is counted by other means, which get choices and what comes before wrong
_COUNTS = re.compile(r"(?<!u)\{(\d+),(\d*)\}")
_CATEGORIES = {ops.CATEGORY_DIGIT: r"\d", ops.CATEGORY_SPACE: r"\s", ops.CATEGORY_WORD: r"\w"}
_NOT_CATEGORIES = {ops.CATEGORY_NOT_DIGIT: r"\d", ops.CATEGORY_NOT_SPACE: r"\s", ops.CATEGORY_NOT_WORD: r"\w"}


def parse(regexp: str) -> tuple[Items, int]:
    """Parses an expression into its items, one after the other, and its flags. Raises re.error."""
    with warnings.catch_warnings(action="ignore"):  # of what may mean something else some day
        parsed = parser.parse(regexp)
    return list(parsed), parsed.state.flags


def counts_too_much(written: str) -> bool:
    """True if XGrammar would count further in an automaton of `written`, with all counts as {m,n} or {m,}, than it gets right."""
    return any(int(count) > _MOST_COUNTED for counts in _COUNTS.findall(written) for count in counts if count)


def _inner_flags(argument: Any, flags: int) -> int:
    """The flags inside of a group."""
    return (flags | argument[1]) & ~argument[2]


def alternatives(item: Item, flags: int) -> list[tuple[Items, int]]:
    """The alternatives of an item, each with its flags: several of an alternation, one of a group, none of any other item."""
    kind, argument = item
    if kind is ops.BRANCH:
        return [(list(items), flags) for items in argument[1]]
    return [(list(argument[3]), _inner_flags(argument, flags))] if kind is ops.SUBPATTERN else []


def characters_of(item: Item, flags: int) -> Characters | None:
    """The characters that an item stands for, if it always matches one."""
    kind, argument = item
    if kind is ops.ANY:
        return complement(() if flags & re.DOTALL else ((10, 10),))
    if ways := alternatives(item, flags):
        found = [single(*way) for way in ways]
        return None if None in found else make_set(piece for each in found for piece in each or ())
    if kind in (ops.LITERAL, ops.NOT_LITERAL):
        return _of_class([(ops.LITERAL, argument)], flags, is_negative=kind is ops.NOT_LITERAL)
    if kind is ops.IN:
        is_negative = argument[0][0] is ops.NEGATE
        return _of_class(argument[is_negative:], flags, is_negative=is_negative)
    return None


def single(items: Items, flags: int) -> Characters | None:
    """The characters that a whole expression stands for, if it always matches one."""
    return characters_of(items[0], flags) if len(items) == 1 else None


def _of_class(items: Items, flags: int, *, is_negative: bool) -> Characters:
    characters = make_set(piece for item in items for piece in _of_class_item(item, flags))
    if flags & re.IGNORECASE:
        characters = in_any_case(characters, flags & re.ASCII)
    return complement(characters) if is_negative else characters


def _of_class_item(item: Item, flags: int) -> Characters:
    kind, argument = item
    if kind is ops.RANGE:
        return (argument,)
    if kind is ops.LITERAL:
        return ((argument, argument),)
    if argument in _CATEGORIES:
        return find_matches(_CATEGORIES[argument], flags & re.ASCII)
    return complement(find_matches(_NOT_CATEGORIES[argument], flags & re.ASCII))


def is_letter(characters: Characters, flags: int) -> bool:
    """True for one character, in any case if case is ignored: two of those are the same or have nothing in common."""
    first = characters[0][0] if characters else 0
    one = ((first, first),)
    return characters == (in_any_case(one, flags & re.ASCII) if flags & re.IGNORECASE else one)


def begins(items: Items, flags: int) -> Characters:
    """The characters that a match can begin with, and perhaps some more."""
    found: list[tuple[int, int]] = []
    for item in items:
        found += _begins(item, flags)
        if not _may_be_empty(item, flags):
            return make_set(found)
    return make_set(found)


def goes_on_with(items: Items, flags: int) -> Characters:
    """The characters that can make a match longer, and perhaps some more: of `#[^\\n]*` all but the end of the line."""
    found: list[tuple[int, int]] = []
    for item in reversed(items):
        found += _goes_on_with(item, flags)
        if not _may_be_empty(item, flags):
            return make_set(found)
        found += _begins(item, flags)
    return make_set(found)


def _begins(item: Item, flags: int) -> Characters:
    characters = characters_of(item, flags)
    if characters is not None:
        return characters
    if item[0] in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        return begins(list(item[1][2]), flags)
    ways = alternatives(item, flags)
    return make_set(piece for way in ways for piece in begins(*way)) if ways else ALL


def _goes_on_with(item: Item, flags: int) -> Characters:
    if characters_of(item, flags) is not None:
        return ()
    if item[0] in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        fewest, most, items = item[1]
        return make_set([*goes_on_with(list(items), flags), *(begins(list(items), flags) if most != fewest else ())])
    ways = alternatives(item, flags)
    return make_set(piece for way in ways for piece in goes_on_with(*way)) if ways else ALL


def _may_be_empty(item: Item, flags: int) -> bool:
    if characters_of(item, flags) is not None:
        return False
    if item[0] in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        return item[1][0] == 0 or all(_may_be_empty(inner, flags) for inner in item[1][2])
    ways = alternatives(item, flags)
    return not ways or any(all(_may_be_empty(inner, way_flags) for inner in items) for items, way_flags in ways)
