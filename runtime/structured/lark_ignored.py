"""Writes what a Lark grammar ignores as GBNF, in the places where it may stand and of limited length.

It may stand before each terminal and at the end, as in Lark, but not without end, or a small model would write spaces for ever: at
most 20 pieces in a row, each a character of white space or a whole comment. Lark takes what it ignores as long as it is: behind
`#[^\\n]*` comes the end of the line, never the rest of a statement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from re import _constants as ops

from cupola.runtime.structured.character_sets import Characters, subtract
from cupola.runtime.structured.lark_terminals import TerminalWriter
from cupola.runtime.structured.regular_expressions import Items, alternatives, begins, goes_on_with, parse, single

MAX_IGNORED = 20


@dataclass(frozen=True)
class Piece:
    """A part of what is ignored.

    Args:
        written: in GBNF.
        begins: the characters that it can begin with.
        goes_on_with: those that would be a part of it, too, so that they can't come next.
        is_character: whether it is one character.
    """

    written: str
    begins: Characters
    goes_on_with: Characters
    is_character: bool


class Ignored:
    """Writes what is ignored.

    Args:
        regexps: of the terminals that are ignored.
        writer: writes their expressions.

    Attributes:
        rules: bodies of rules by their names, in each of which is a dot.

    Raises:
        TerminalError: from here and from all methods.
    """

    def __init__(self, regexps: Iterable[str], writer: TerminalWriter) -> None:
        self._writer = writer
        pieces = [piece for regexp in regexps for piece in self._pieces(*parse(regexp))]
        closed = [piece for piece in pieces if not piece.goes_on_with]
        open_ended = [piece for piece in pieces if piece.goes_on_with]
        self._open = [replace(piece, written=f"open.{i}") for i, piece in enumerate(open_ended)]
        self.rules = {f"open.{i}": piece.written for i, piece in enumerate(open_ended)}
        ways = [piece.written for piece in closed]
        for piece in self._open:
            after = [way for other in closed if (way := self._after(piece, other))]
            ways += [f"{piece.written} ({' | '.join(after)})"] if after else []
        if pieces:
            self.rules["ignored."] = f"({' | '.join(ways)}){{0,{MAX_IGNORED}}}" if ways else '""'

    def before(self, regexp: str) -> str:
        """Ignored pieces that may stand before a terminal, as the beginning of a sequence in GBNF."""
        if not self.rules:
            return ""
        first = begins(*parse(regexp))
        return self._write(piece for piece in self._open if subtract(first, piece.goes_on_with) == first)

    def at_end(self) -> str:
        """Ignored pieces that may stand at the end, as the beginning of a sequence."""
        return self._write(self._open) if self.rules else ""

    def _write(self, others: Iterable[Piece]) -> str:
        written = " | ".join(piece.written for piece in others)
        return f"ignored. ({written}){{0,1}} " if written else "ignored. "

    def _after(self, piece: Piece, other: Piece) -> str:
        """`other` if it may come right after `piece`, or its characters that may."""
        allowed = subtract(other.begins, piece.goes_on_with)
        if allowed == other.begins:
            return other.written
        return self._writer.write_class(allowed) if other.is_character and allowed else ""

    def _pieces(self, items: Items, flags: int) -> Iterable[Piece]:
        """The pieces of a terminal: each way of an alternation, and of a repetition what it repeats."""
        if (characters := single(items, flags)) is not None:
            yield Piece(self._writer.write_items(items, flags), characters, (), True)
        elif len(items) == 1 and (ways := alternatives(items[0], flags)):
            for way in ways:
                yield from self._pieces(*way)
        elif len(items) == 1 and items[0][0] is ops.MAX_REPEAT and items[0][1][0] <= 1 and items[0][1][1] is ops.MAXREPEAT:
            yield from self._pieces(list(items[0][1][2]), flags)
        else:
            yield Piece(self._writer.write_items(items, flags), begins(items, flags), goes_on_with(items, flags), False)
