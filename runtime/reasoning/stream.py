"""Splits a model's text into thinking and answer while it arrives, wherever it is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cupola.runtime.reasoning.formats import ReasoningFormat
from cupola.runtime.tool_calls.calls import Answer, Delta, ReasoningDelta
from cupola.runtime.tool_calls.markers import markers_of
from cupola.runtime.tool_calls.stream import ToolCallStream, parse_answer

Piece = tuple[bool, str]  # whether it is thinking, and the text


class ReasoningSplitter:
    """Tells the thinking, which comes first if at all, from the rest. White space around both is dropped, and nothing else.

    Args:
        format: how the model marks it; None if all is answer.
        thinks: whether the text begins within the thinking.
        special_tokens: tokens that are left out of the thinking.
    """

    def __init__(self, format: ReasoningFormat | None, *, thinks: bool = False, special_tokens: Sequence[str] = ()) -> None:
        self._format, self._text, self._space = format, "", ""
        ends = format.ends if format else ()
        self._ends, self._in_thinking = ends, markers_of((*ends, *special_tokens))
        self._frames = markers_of(format.frames if format else ())
        self._pieces: list[Piece] = []
        self._is_blank = format is not None  # nothing but white space came of the part that it is in
        self._state: Callable[[bool], bool] = self._answer if format is None else self._think if thinks else self._begin

    def push(self, text: str, *, is_last: bool = False) -> list[Piece]:
        """Takes the next piece, cut anywhere; with `is_last`, also gives what was held back."""
        self._text += text
        while self._state(is_last):
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    # States. Each consumes some of the text, may set the next state, and says whether to go on; False waits for more text.

    def _begin(self, is_last: bool) -> bool:
        assert self._format is not None
        body = self._text.lstrip()
        if marker := next((begin for begin in self._format.begins if body.startswith(begin)), None):
            self._text, self._state = body[len(marker) :], self._think
            return True
        if not is_last and any(begin.startswith(body) for begin in self._format.begins):
            return False
        self._is_blank, self._state = False, self._answer  # no thinking came before it: its white space is its own
        return True

    def _think(self, is_last: bool) -> bool:
        found = self._in_thinking.search(self._text)
        if found is None:
            num_sure = len(self._text) - (0 if is_last else self._in_thinking.num_held(self._text))
            self._say(self._text[:num_sure])
            self._text = self._text[num_sure:]
            return False
        self._say(self._text[: found.start()])
        self._text = self._text[found.end() :]
        if found[0] in self._ends:
            self._is_blank, self._space, self._state = True, "", self._answer
        return True

    def _answer(self, is_last: bool) -> bool:
        found = self._frames.search(self._text)
        num_sure = found.start() if found else len(self._text) - (0 if is_last else self._frames.num_held(self._text))
        text = self._text[:num_sure]
        if self._is_blank:
            text = text.lstrip()
            self._is_blank = not text
        if text:
            self._pieces.append((False, text))
        self._text = self._text[found.end() if found else num_sure :]
        return found is not None

    def _say(self, text: str) -> None:
        """Thinking; white space waits until it is not the last."""
        text = self._space + text
        if self._is_blank:
            text = text.lstrip()
        sure = text.rstrip()
        self._space = text[len(sure) :]
        if sure:
            self._is_blank = False
            self._pieces.append((True, sure))


class AnswerStream:
    """Reads one answer: its thinking, and, by `tools`, content and calls in what comes after.

    Args:
        shown: whether the thinking is given at all.
    """

    def __init__(self, splitter: ReasoningSplitter, tools: ToolCallStream, *, shown: bool = True) -> None:
        self._splitter, self._tools, self._shown = splitter, tools, shown

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the answer, cut anywhere."""
        return self._read(self._splitter.push(text))

    def finish(self) -> list[Delta]:
        """The deltas that were held back, at the end of the answer."""
        return self._read(self._splitter.push("", is_last=True)) + self._tools.finish()

    def finish_reason(self, reason: str) -> str:
        """The choice's finish reason, from the engine's."""
        return self._tools.finish_reason(reason)

    def _read(self, pieces: list[Piece]) -> list[Delta]:
        deltas: list[Delta] = []
        for is_thinking, text in pieces:
            if not is_thinking:
                deltas += self._tools.push(text)
            elif self._shown:
                deltas.append(ReasoningDelta(text))
        return deltas


def split_answer(splitter: ReasoningSplitter, tools: ToolCallStream, text: str, *, shown: bool = True) -> Answer:
    """Reads a whole answer by fresh streams."""
    pieces = splitter.push(text, is_last=True)
    reasoning = "".join(piece for is_thinking, piece in pieces if is_thinking)
    answer = parse_answer(tools, "".join(piece for is_thinking, piece in pieces if not is_thinking))
    return replace(answer, reasoning=reasoning or None) if shown else answer
