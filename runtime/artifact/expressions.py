"""Sizes that depend on others, such as "n * 2304": read and evaluated here, and never by Python itself.

expression = sum [("<" | "<=" | ">" | ">=") sum]        1 where it is true, else 0
sum        = term {("+" | "-") term}
term       = factor {("*" | "//") factor}
factor     = number | name | "(" expression ")"
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping

MAX_LENGTH, MAX_DEPTH = 1000, 16
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_TOKEN = re.compile(r" *(?:(\d{1,18})(?!\w)|([A-Za-z_]\w{0,63})|(//|[<>]=?|[-+*()]))", re.ASCII)


def evaluate(expression: int | str, sizes: Mapping[str, int]) -> int:
    """The value of a number or an expression, whose names are those of `sizes`.

    Raises:
        ValueError: it is no expression, or holds another name, or divides by 0.
    """
    if isinstance(expression, int):
        return expression
    known = sizes.get(expression)  # most are names, and there are thousands
    return _Reader(expression, sizes).value() if known is None else known


class _Reader:
    def __init__(self, text: str, sizes: Mapping[str, int]) -> None:
        if len(text) > MAX_LENGTH:
            raise ValueError(f"is longer than {MAX_LENGTH} characters")
        self._tokens, self._at, self._sizes = _tokens(text), 0, sizes

    def value(self) -> int:
        value = self._comparison(MAX_DEPTH)
        if self._next() is not None:
            raise ValueError(f"{self._next()!r} stands in the wrong place")
        return value

    def _next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, *wanted: str) -> str | None:
        token = self._next()
        if token not in wanted:
            return None
        self._at += 1
        return token

    def _comparison(self, depth: int) -> int:
        value = self._sum(depth)
        sign = self._take(*_COMPARISONS)
        return value if sign is None else int(_COMPARISONS[sign](value, self._sum(depth)))

    def _sum(self, depth: int) -> int:
        value = self._product(depth)
        while sign := self._take("+", "-"):
            other = self._product(depth)
            value = value + other if sign == "+" else value - other
        return value

    def _product(self, depth: int) -> int:
        value = self._factor(depth)
        while sign := self._take("*", "//"):
            other = self._factor(depth)
            if sign == "//" and other == 0:
                raise ValueError("divides by 0")
            value = value * other if sign == "*" else value // other
        return value

    def _factor(self, depth: int) -> int:
        if self._take("("):
            if not depth:
                raise ValueError("is nested too deeply")
            value = self._comparison(depth - 1)
            if not self._take(")"):
                raise ValueError("lacks a ')'")
            return value
        token = self._next()
        if token is None or not (token[0].isalnum() or token[0] == "_"):
            raise ValueError("ends too early" if token is None else f"{token!r} stands in the wrong place")
        self._at += 1
        if token[0].isdecimal():
            return int(token)
        if token not in self._sizes:
            raise ValueError(f"{token!r} is no known size")
        return self._sizes[token]


def _tokens(text: str) -> list[str]:
    tokens, at, text = [], 0, text.rstrip(" ")
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"{text[at : at + 20]!r} is no number, name or operator")
        tokens.append(found[found.lastindex or 0])
        at = found.end()
    return tokens
