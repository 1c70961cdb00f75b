"""Sets of characters as `re` has them: what a class, a category or a letter in either case matches.

A set is a sorted tuple of ranges of code points, both ends within. Surrogates are in none of them: they are no characters of a text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import numpy as np

Characters = tuple[tuple[int, int], ...]
LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
ALL: Characters = ((0, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, LAST))
_LENGTHS = ((0, 0x7FF), (0x800, 0xFFFF), (0x10000, LAST))  # of up to two bytes in UTF-8, of three and of four
_LAST_CASED = 0x1FFFF  # no letter past it comes in two cases


def make_set(ranges: Iterable[tuple[int, int]]) -> Characters:
    """The set of all that is in some of the ranges."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(_without_surrogates(ranges)):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def complement(characters: Characters) -> Characters:
    """All characters but these."""
    firsts = [0, *(last + 1 for _, last in characters)]
    lasts = [*(first - 1 for first, _ in characters), LAST]
    return make_set((first, last) for first, last in zip(firsts, lasts, strict=True) if first <= last)


def subtract(characters: Characters, others: Characters) -> Characters:
    """The characters that are none of the others."""
    return complement(make_set([*complement(characters), *others]))


@functools.cache
def find_matches(pattern: str, flags: int = 0) -> Characters:
    """The characters that a pattern for one character, such as `\\w`, matches."""
    codes = np.arange(0x80 if flags & re.ASCII else LAST + 1, dtype="<u4")
    runs = re.finditer(f"{pattern}+", codes.tobytes().decode("utf-32-le", "surrogatepass"), flags)
    return make_set((ord(run[0][0]), ord(run[0][-1])) for run in runs)


@functools.lru_cache(1024)
def in_any_case(characters: Characters, flags: int = 0) -> Characters:
    """The characters, and what `re.IGNORECASE` takes for one of them, asked of `re` itself."""
    if not characters:
        return characters
    pattern = "[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in characters) + "]"
    return make_set([*characters, *((ord(found), ord(found)) for found in re.findall(pattern, _cased(), flags | re.IGNORECASE))])


def write_set(characters: Characters) -> str:
    """The set in GBNF: a class, or a choice of two or three.

    Each has characters of the same length in UTF-8 but for ASCII's: XGrammar 0.2.8 lets bytes that are no character into a class of others.
    """
    parts = [make_set((max(first, low), min(last, high)) for first, last in characters) for low, high in _LENGTHS]
    classes = [f"[{''.join(map(_write_range, part))}]" for part in parts if part]
    return classes[0] if len(classes) == 1 else f"({' | '.join(classes)})"


def as_in_expressions(written: str) -> str:
    """Rewrites the output of `write_set` for XGrammar's regular expressions: there, eight hexadecimal digits stand in braces."""
    return re.sub(r"\\U([0-9a-f]{8})", lambda code: f"\\u{{{int(code[1], 16):x}}}", written.replace(" ", ""))


def join_classes(written: str) -> str:
    """Writes each choice made by `write_set` as one class: in rules XGrammar gets classes right, and takes long over choices."""
    return re.sub(r"\((\[[^]]*\](?: ?\| ?\[[^]]*\])+)\)", lambda choice: re.sub(r"\] ?\| ?\[", "", choice[1]), written)


@functools.cache
def _cased() -> str:
    characters = map(chr, range(_LAST_CASED + 1))
    return "".join(c for c in characters if not c == c.lower() == c.upper() == c.title())


def _without_surrogates(ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    for first, last in ranges:
        yield from ((a, b) for a, b in ((first, min(last, _SURROGATES[0] - 1)), (max(first, _SURROGATES[1] + 1), last)) if a <= b)


def _write_range(ends: tuple[int, int]) -> str:
    first, last = ends
    return _write(first) if first == last else f"{_write(first)}-{_write(last)}"


def _write(code: int) -> str:
    if chr(code).isascii() and chr(code).isalnum():
        return chr(code)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
