"""How much a tokenizer may do to a text, read off its description before it is given any.

A `tokenizer.json` comes with a model and may be hostile: normalizers that each double a text multiply it by a million in twenty steps,
and some regular expressions take longer than the universe. What is known to be harmless runs where it is wanted; all else runs in a
process that can be ended, and a decoder, which runs beside the model, must be harmless.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

MAX_GROWTH = 10_000  # characters that one becomes; the estimates are far above what is seen
# Steps by what they make of a character at most. Those of Unicode are its longest expansions.
_GROWTH = {
    "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "Strip": 1, "StripAccents": 1, "Nmt": 1, "BertNormalizer": 12,
    "Precompiled": 18, "ByteLevel": 4, "Fuse": 1, "ByteFallback": 3, "Metaspace": 2, "WordPiece": 2, "BPEDecoder": 2, "CTC": 2,
}  # fmt: skip
_SPLITTERS = frozenset(
    {
        "ByteLevel", "Split", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "Metaspace", "BertPreTokenizer",
        "CharDelimiterSplit", "UnicodeScripts", "FixedLength",
    }
)  # fmt: skip
_ESCAPE = re.compile(r"\\(?:[pP]\{[^}]{0,64}\}|x\{[0-9a-fA-F]{1,8}\}|x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|[^1-9kgKRX])", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:[imx-]{0,6}:|[=!>]|<[=!]))?")
_FLAGS = re.compile(r"\(\?[imx-]{1,6}\)")
_QUANTIFIER = re.compile(r"([*+?])([+?]?)|\{(\d{0,4})(?:(,)(\d{0,4}))?\}(\??)")
MAX_PATTERN_CHARACTERS, MAX_DEPTH = 10_000, 16
MAX_COST = 1  # so that a text is at worst gone through once for each of its characters


def is_harmless_encoder(tokenizer: tokenizers.Tokenizer) -> bool:
    """True if encoding a short text takes little time and memory."""
    normalizer, splitters = _describe(tokenizer.normalizer), list(_steps(_describe(tokenizer.pre_tokenizer)))
    return (
        growth(normalizer) <= MAX_GROWTH
        and all(step.get("type") in _SPLITTERS for step in splitters)
        and _has_simple_patterns([*_steps(normalizer), *splitters])
    )


def is_harmless_decoder(tokenizer: tokenizers.Tokenizer) -> bool:
    """True if decoding some tokens takes little time and memory."""
    decoder = _describe(tokenizer.decoder)
    return growth(decoder) <= MAX_GROWTH and _has_simple_patterns(list(_steps(decoder)))


def _describe(component: Any) -> Mapping[str, Any] | None:
    """A component as a `tokenizer.json` has it."""
    found: Mapping[str, Any] | None = None if component is None else json.loads(component.__getstate__())
    return found


def growth(component: Mapping[str, Any] | None) -> float:
    """How many characters a normalizer or decoder may make of one; infinity for one that is not known."""
    product = 1.0
    for step in _steps(component):
        product *= _step_growth(step)
    return product


def _step_growth(step: Mapping[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Replace":
        return max(1, len(str(step.get("content")))) + ("Regex" in step.get("pattern", {}))  # an empty match adds to what is there
    if kind == "Prepend":
        return 1 + len(str(step.get("prepend")))
    return _GROWTH.get(str(kind), math.inf)


def _steps(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a component, in order; a sequence of steps may hold others."""
    if component is None:
        return
    inner = next((component[name] for name in ("normalizers", "pretokenizers", "decoders") if name in component), None)
    if component.get("type") != "Sequence" or inner is None:
        yield component
        return
    for step in inner:
        yield from _steps(step)


def _has_simple_patterns(steps: list[Mapping[str, Any]]) -> bool:
    patterns = [step["pattern"]["Regex"] for step in steps if isinstance(step.get("pattern"), dict) and "Regex" in step["pattern"]]
    return all(is_simple(pattern) for pattern in patterns)


def is_simple(pattern: str) -> bool:
    """True if matching a regular expression against a text takes at most quadratic time, as far as its form shows."""
    try:
        found = _Parser(pattern).alternatives(0)
    except _Unclear:
        return False
    return found.cost <= MAX_COST


class _Unclear(Exception):
    """A pattern that is not understood, or repeats what may match in several ways."""


@dataclass
class _Part:
    """Part of a pattern: how often a failure may make it try again, and what may yet become that.

    Attributes:
        cost: repetitions that are followed by something which may fail.
        pending: repetitions at the end, after which nothing failed yet.
        varies: whether it may match in several ways.
    """

    cost: int = 0
    pending: int = 0
    varies: bool = False


class _Parser:
    """Reads Oniguruma's syntax as far as tokenizers use it."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise _Unclear
        self._text, self._at = pattern, 0

    def alternatives(self, depth: int) -> _Part:
        """The pattern, or a group's inside up to its bracket."""
        if depth > MAX_DEPTH:
            raise _Unclear
        parts = [self._sequence(depth)]
        while self._take("|"):
            parts.append(self._sequence(depth))
        if (self._at < len(self._text)) == (depth == 0):
            raise _Unclear
        varies = len(parts) > 1 or parts[0].varies
        return _Part(max(part.cost for part in parts), max(part.pending for part in parts), varies)

    def _sequence(self, depth: int) -> _Part:
        whole = _Part()
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            self._add(whole, self._atom(depth))
        return whole

    def _add(self, whole: _Part, atom: _Part) -> None:
        found = _QUANTIFIER.match(self._text, self._at)
        least, most, gives_back = 1, 1.0, True
        if found:
            self._at = found.end()
            least, most, gives_back = _read_quantifier(found)
            if _QUANTIFIER.match(self._text, self._at):
                raise _Unclear
        if most > 1 and atom.varies:
            raise _Unclear
        if least > 0:
            whole.cost, whole.pending = whole.cost + whole.pending, 0
        whole.cost += atom.cost
        whole.pending += atom.pending + (gives_back and math.isinf(most))
        whole.varies = whole.varies or atom.varies or (gives_back and least != most)

    def _atom(self, depth: int) -> _Part:
        if flags := _FLAGS.match(self._text, self._at):
            self._at = flags.end()
            return _Part()
        if self._text[self._at] == "(":
            group = _GROUP.match(self._text, self._at)
            if group is None or self._text.startswith("?", group.end()):
                raise _Unclear
            self._at = group.end()
            inside = self.alternatives(depth + 1)
            if not self._take(")"):
                raise _Unclear
            return inside
        self._character()
        return _Part()

    def _character(self) -> None:
        """A character, an escape or a class of characters."""
        if self._text[self._at] == "\\":
            escape = _ESCAPE.match(self._text, self._at)
            if escape is None:
                raise _Unclear
            self._at = escape.end()
        elif self._take("["):
            self._take("^")
            self._take("]")
            while not self._take("]"):
                if self._at >= len(self._text):
                    raise _Unclear
                self._character()
        else:
            self._at += 1

    def _take(self, character: str) -> bool:
        found = self._text.startswith(character, self._at)
        self._at += found
        return found


def _read_quantifier(found: re.Match[str]) -> tuple[int, float, bool]:
    """How often at least and at most, and whether a match is given back for others."""
    sign, mode, low, comma, high, _ = found.groups()
    if sign:
        return int(sign == "+"), 1.0 if sign == "?" else math.inf, mode != "+"
    if not low and not high:
        raise _Unclear
    return int(low or 0), (float(high) if high else math.inf) if comma else float(low), True
