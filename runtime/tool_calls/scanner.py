"""Finds where a JSON object ends while its text still arrives."""

from __future__ import annotations

import re

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')


class ObjectScanner:
    """Counts brackets outside of strings. Whether the text is JSON at all is for a parser to say, once the end is known.

    Args:
        depth: how many brackets are open already.
    """

    def __init__(self, depth: int = 0) -> None:
        self._depth, self._in_string, self._escaped = depth, False, False

    def feed(self, text: str) -> int | None:
        """Takes the next piece. Returns how many of its characters belong to the object if it ends here, else None."""
        at = 0
        if self._escaped and text:
            at, self._escaped = 1, False
        while found := (_INSIDE if self._in_string else _OUTSIDE).search(text, at):
            at = found.end()
            character = found[0]
            if character == '"':
                self._in_string = not self._in_string
            elif character == "\\":
                self._escaped = at == len(text)
                at += 1
            else:
                self._depth += 1 if character in "{[" else -1
                if self._depth == 0:
                    return at
        return None
