"""Finds the strings that end an output, in time that grows with the text and hardly with the strings."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence


class StopStrings:
    """Some stop strings, for any number of texts.

    Whether one of them begins with a text's end, or ends a text, is looked up by bisection among sorted strings, so that a character
    costs a few comparisons however many there are.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        self._strings = tuple(strings)
        self._sorted = sorted(self._strings)
        self._firsts, self._lasts = {s[0] for s in strings}, {s[-1] for s in strings}
        self._longest = max(map(len, strings), default=0)
        # Reversed, and without what another one ends anyway: of those at most one, the last that isn't greater, is a prefix of a text.
        self._reversed: list[str] = []
        for text in sorted(s[::-1] for s in strings):
            if not (self._reversed and text.startswith(self._reversed[-1])):
                self._reversed.append(text)

    def __bool__(self) -> bool:
        return bool(self._strings)

    def find_held(self, text: str, start: int) -> int:
        """The first index, from `start` on, from which on the text may become a stop string; the text's length if there is none."""
        for i in range(max(start, len(text) - self._longest), len(text)):
            if text[i] in self._firsts and self._may_become(text[i:]):
                return i
        return len(text)

    def find(self, text: str, num_new: int, start: int) -> tuple[int, str] | None:
        """The stop string that begins first of those that the last `num_new` characters complete, and where.

        Args:
            start: `find_held` of the text without those characters; no such string begins before.
        """
        if not any(self._ends(text, start, end) for end in range(len(text) - num_new + 1, len(text) + 1)):
            return None
        searched = {s: max(start, len(text) - num_new - len(s) + 1) for s in self._strings}
        return min((at, s) for s, first in searched.items() if (at := text.find(s, first)) >= 0)

    def _may_become(self, text: str) -> bool:
        i = bisect_left(self._sorted, text)
        return i < len(self._sorted) and self._sorted[i].startswith(text)

    def _ends(self, text: str, start: int, end: int) -> bool:
        if text[end - 1] not in self._lasts:
            return False
        backwards = text[max(start, end - self._longest) : end][::-1]
        i = bisect_right(self._reversed, backwards)
        return i > 0 and backwards.startswith(self._reversed[i - 1])
