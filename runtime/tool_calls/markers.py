"""Finds markers in text that arrives in pieces, each maybe with half a marker at its end."""

from __future__ import annotations

import re
from functools import lru_cache


class Markers:
    """A set of markers. Of two that begin alike the shorter one is found, as it is when the rest has not arrived yet."""

    def __init__(self, markers: tuple[str, ...]) -> None:
        shortest_first = sorted(filter(None, markers), key=len)
        self._pattern = re.compile("|".join(map(re.escape, shortest_first))) if shortest_first else None
        self._beginnings = frozenset(marker[:length] for marker in shortest_first for length in range(1, len(marker)))
        self._longest = max(map(len, self._beginnings), default=0)

    def search(self, text: str) -> re.Match[str] | None:
        """The first marker in `text`."""
        return self._pattern.search(text) if self._pattern else None

    def num_held(self, text: str) -> int:
        """How many characters at the end of `text`, which holds no marker, may be a marker's beginning."""
        lengths = range(min(len(text), self._longest), 0, -1)
        return next((length for length in lengths if text[-length:] in self._beginnings), 0)


@lru_cache(maxsize=64)
def markers_of(markers: tuple[str, ...]) -> Markers:
    """The same for each answer of a model, whose special tokens may be hundreds."""
    return Markers(markers)
