"""Writes the regular expressions of Lark's terminals as GBNF.

A terminal stands for every text that its expression matches in full. Which of several matches Python's `re` would choose, by the
order of alternatives or by greed, says nothing then; a lazy repetition does say something, since it ends where what follows may
first come. It is written where that is the end of the terminal, as in `.*?"`, or where the repetition can't go on past it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from re import _constants as ops
from typing import Any

from cupola.runtime.structured.character_sets import Characters, as_in_expressions, make_set, subtract, write_set
from cupola.runtime.structured.regular_expressions import END, REFUSED, Item, Items, alternatives, characters_of, is_letter, parse, single

MOST_INLINE = 8  # ranges of a class; larger ones become a rule, once
BACKSLASH = ((ord("\\"), ord("\\")),)


class TerminalError(ValueError):
    """Raised for a part of a regular expression that can't be written as GBNF."""


class TerminalWriter:
    """Writes regular expressions, and keeps the rules that what it wrote refers to.

    Attributes:
        rules: bodies of rules by their names, in each of which is a dot.
    """

    def __init__(self) -> None:
        self.rules: dict[str, str] = {}
        self._classes: dict[str, str] = {}

    def write(self, regexp: str) -> str:
        """The expression in GBNF for what matches `regexp` in full. Raises TerminalError."""
        try:
            return self.write_items(*parse(regexp))
        except re.error as error:
            raise TerminalError(f"it is no regular expression: {error}") from None

    def write_items(self, items: Items, flags: int, *, is_last: bool = True) -> str:
        """As `write`, for what `re` has parsed; `is_last` if the terminal ends with it. Raises TerminalError."""
        parts: list[str] = []
        for i, item in enumerate(items):
            rest = list(items[i + 1 :])
            if item[0] is not ops.MIN_REPEAT:
                parts.append(self._item(item, flags, is_last=is_last and not rest))
                continue
            ending = (i and self._quoted(items[i - 1], item, rest, flags)) or self._up_to(item[1], rest, flags) if is_last else None
            if ending:
                parts.append(ending)
                break
            parts.append(self._lazy(item[1], rest, flags))
        return " ".join(parts) or '""'

    def _item(self, item: Item, flags: int, *, is_last: bool) -> str:
        characters = characters_of(item, flags)
        if characters is not None:
            return self.write_class(characters)
        if ways := alternatives(item, flags):
            return f"({' | '.join(self.write_items(*way, is_last=is_last) for way in ways)})"
        if item[0] is ops.MAX_REPEAT:
            fewest, most, items = item[1]
            return _repeat(f"({self.write_items(items, flags, is_last=False)})", fewest, most)
        raise TerminalError(f"{REFUSED.get(item[0], f'what `re` calls {item[0]}')} is not supported")

    def write_class(self, characters: Characters) -> str:
        """One of these characters. Raises TerminalError."""
        if not characters:
            raise TerminalError("a class that matches no character is not supported")
        if len(characters) <= MOST_INLINE:
            return write_set(characters)
        written = write_set(characters)
        if written not in self._classes:
            self._classes[written] = f"class.{len(self.rules)}"
            self.rules[self._classes[written]] = written
        return self._classes[written]

    def _lazy(self, argument: Any, rest: Items, flags: int) -> str:
        """A lazy repetition that can't go on past where the rest begins: as a greedy one."""
        fewest, most, items = argument
        repeated, following = single(items, flags), characters_of(rest[0], flags) if rest else None
        if repeated is None or following is None or subtract(following, repeated) != following:
            raise TerminalError("a lazy repetition is not supported but of one character, and before the text that ends the terminal")
        return _repeat(self.write_class(repeated), fewest, most)

    def _up_to(self, argument: Any, rest: Items, flags: int) -> str | None:
        """A lazy repetition and a text after it, such as `.*?-->`, which end the terminal."""
        fewest, most, items = argument
        repeated, end = single(items, flags), [characters_of(item, flags) or () for item in rest]
        if repeated is None or most is not ops.MAXREPEAT or not end or not all(is_letter(letter, flags) for letter in end):
            return None
        if any(subtract(letter, repeated) for letter in end):
            return None
        return f"{_repeat(self.write_class(repeated), fewest, fewest)} {self._until(repeated, end)}"

    def _quoted(self, before: Item, item: Item, rest: Items, flags: int) -> str | None:
        r"""The end of a quoted string, after its quote: `.*?(?<!\\)(\\\\)*?"`, as common.lark has it, or `.*?(?<!\\)"`."""
        pairs = len(rest) == 3 and _is_lazy_pairs(rest[1])
        if item[1][:2] != (0, ops.MAXREPEAT) or not (pairs or len(rest) == 2) or not _is_after_no_backslash(rest[0]):
            return None
        opening, repeated, quote = characters_of(before, flags), single(item[1][2], flags), characters_of(rest[-1], flags)
        if opening is None or repeated is None or quote is None or not is_letter(quote, flags):
            return None
        special = make_set([*quote, *BACKSLASH])
        if subtract(opening, BACKSLASH) != opening or subtract(special, repeated) or quote == BACKSLASH:
            return None
        escape = f"{self.write_class(BACKSLASH)} {self.write_class(repeated)}"
        if not pairs:
            escape = f"{self.write_class(BACKSLASH)}+ {self.write_class(subtract(repeated, BACKSLASH))}"
        return f"({self.write_class(subtract(repeated, special))} | {escape})* {self.write_class(quote)}"

    def _until(self, repeated: Characters, end: list[Characters]) -> str:
        """Some of the characters `repeated`, up to where `end` first comes.

        Knuth, Morris and Pratt's automaton, whose state is how much of `end` was just seen, as an expression: each state's way to the
        end leads through the next one, or back to states before it, and is written into that of the state before.
        """
        onward, back = "", dict[int, str]()  # from the state behind the one that comes now: to the end, and to others
        for state in range(len(end) - 1, -1, -1):
            letter = self.write_class(end[state])
            others = self._steps_back(repeated, end, state)
            onward = f"{letter} {onward}"
            for to, way in back.items():
                others[to] = [*others.get(to, []), f"{letter} {way}"]
            again = f"({' | '.join(others.pop(state))})* " if state in others else ""
            onward = again + onward
            back = {to: again + (ways[0] if len(ways) == 1 else f"({' | '.join(ways)})") for to, ways in others.items()}
        return onward.strip()

    def _steps_back(self, repeated: Characters, end: list[Characters], state: int) -> dict[int, list[str]]:
        """The classes that lead from a state to itself or to those before it, in one step each."""
        steps, others = dict[int, list[str]](), subtract(repeated, end[state])
        for letter in dict.fromkeys(end):
            seen = [*end[:state], letter]
            to = next(n for n in range(len(seen), -1, -1) if seen[len(seen) - n :] == end[:n])
            if letter != end[state] and to:
                steps.setdefault(to, []).append(self.write_class(letter))
                others = subtract(others, letter)
        if others:
            steps.setdefault(0, []).append(self.write_class(others))
        return steps


def as_regex(expression: str, rules: Mapping[str, str]) -> str:
    """An expression of classes in GBNF as one of XGrammar's regular expressions, with the bodies of the rules that it names.

    Within one, a token of several characters is known to be allowed or not; where rules meet, XGrammar tries each. What is optional
    must be written {0,1}, and what is counted needs one end, as the whole does (`json_schema_pattern.py` says why).
    """
    while "." in expression:
        expression = re.sub(r"[a-z]+\.\d*", lambda name: f"({rules[name[0]]})", expression)
    expression = as_in_expressions(expression).replace('""', "()")
    expression = expression.replace("){", f"{END}){{") + END
    return 'Regex("' + expression.replace("\\", "\\\\") + '")'


def _is_after_no_backslash(item: Item) -> bool:
    return item[0] is ops.ASSERT_NOT and item[1][0] < 0 and list(item[1][1]) == [(ops.LITERAL, ord("\\"))]


def _is_lazy_pairs(item: Item) -> bool:
    r"""True if it is `(\\\\)*?`."""
    if item[0] is not ops.MIN_REPEAT or item[1][:2] != (0, ops.MAXREPEAT) or len(item[1][2]) != 1:
        return False
    kind, argument = item[1][2][0]
    return kind is ops.SUBPATTERN and list(argument[3]) == [(ops.LITERAL, ord("\\"))] * 2


def _repeat(written: str, fewest: int, most: Any) -> str:
    if most is ops.MAXREPEAT:
        return written + {0: "*", 1: "+"}.get(fewest, f"{{{fewest},}}")
    if most == 0:
        return '""'
    return f"{written}{{{fewest},{most}}}"
