"""Splits a model's text into what the user reads and the tools that are called, while it arrives, wherever it is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from cupola.runtime.tool_calls.calls import Answer, ContentDelta, Delta, ToolCall, ToolCallDelta, new_call_id, parse_object
from cupola.runtime.tool_calls.formats import NAME, ToolFormat
from cupola.runtime.tool_calls.markers import markers_of
from cupola.runtime.tool_calls.markup import read_markup, write_arguments
from cupola.runtime.tool_calls.scanner import ObjectScanner

MAX_REREADS = 16  # of what stands behind a call that is never closed
MAX_HEAD_CHARACTERS = 256  # what stands before a call's arguments is shorter, or no call
_MEMBERS_BEFORE = r'(?:"(?:type|id|tool_call_id)"\s*:\s*"[^"\\]{0,64}"\s*,\s*){0,2}'
_HEADER = re.compile(rf'\{{\s*{_MEMBERS_BEFORE}"(?:tool_)?name"\s*:\s*"({NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
_FIRST_KEY = re.compile(r'\{\s*(?:[^"\s]|"(?!(?:type|id|tool_call_id|function|name|tool_name|arguments|parameters)")[^"]*")')
_State = Callable[[bool], bool]


class ToolCallStream:
    """Reads one answer. Text goes in with `push` and `finish`; deltas come out as soon as they are sure.

    A call is announced when its name is known and its arguments begin, and its arguments follow as they are written. What looks
    like a call and is none (no JSON, or a function that nobody gave) comes back as content, and so does all of it if
    `whole`: calls are then given once they are complete, and one that breaks off is content. White space next to calls is
    dropped; nothing else is lost.

    Args:
        format: how the model writes calls; None if all is content.
        functions: those that may be called, with the JSON schemas of their arguments.
        parallel: whether there may be several calls; otherwise what comes after the first is dropped, see `done`.
        whole: give calls only when they are complete and their arguments are a JSON object.
        name: the function, where the whole text is its arguments.
        special_tokens: tokens that are left out of the content.
    """

    def __init__(
        self,
        format: ToolFormat | None,
        functions: Mapping[str, Mapping[str, object]],
        *,
        parallel: bool = True,
        whole: bool = False,
        name: str | None = None,
        special_tokens: Sequence[str] = (),
    ) -> None:
        self._format, self._functions, self._parallel, self._whole, self._name = format, functions, parallel, whole, name
        self._begins = format.begins if format else ()
        frames = format.frames if format else ()
        self._markers = markers_of((*self._begins, *frames, *special_tokens))
        self._text = ""  # arrived and not yet looked at, or not yet understood
        self._raw = ""  # understood, and given back as content if no call comes of it
        self._space = ""  # content that is dropped if a call comes next
        self._arguments: list[str] = []
        self._scanner = ObjectScanner()
        self._num_scanned, self._num_rereads = 0, 0
        self._call_name = ""
        self._in_list = False
        self._num_calls, self._cut_off, self._done = 0, False, False
        self._deltas: list[Delta] = []
        self._state: _State = self._at_start if format and format.opens else self._in_content

    @property
    def num_calls(self) -> int:
        """How many calls were announced so far."""
        return self._num_calls

    @property
    def cut_off(self) -> bool:
        """True if the answer ended within the arguments of its last call."""
        return self._cut_off

    @property
    def done(self) -> bool:
        """True if nothing more is wanted: the one call that may be made is complete, and generation may be ended."""
        return self._done

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the answer, cut anywhere."""
        self._text += text
        return self._run(is_last=False)

    def finish(self) -> list[Delta]:
        """The deltas that were held back, at the end of the answer."""
        deltas = self._run(is_last=True)
        if self._space and not self._num_calls:
            deltas.append(ContentDelta(self._space))
        self._space = ""
        return deltas

    def finish_reason(self, reason: str) -> str:
        """The choice's finish reason, from the engine's: "tool_calls" if there are any, unless the last one is cut off."""
        return "tool_calls" if self._num_calls and not self._cut_off else reason

    def _run(self, is_last: bool) -> list[Delta]:
        while not self._done and self._state(is_last):
            pass
        if self._done:
            self._text = ""
        deltas, self._deltas = self._deltas, []
        return deltas

    # States. Each consumes some of the text, may set the next state, and says whether to go on; False waits for more text.

    def _at_start(self, is_last: bool) -> bool:
        assert self._format is not None
        body = self._text.lstrip()
        if not body and not is_last:
            return False
        if body and body[0] in self._format.opens:
            self._consume(len(self._text) - len(body))
            self._state = self._before_call
        else:
            self._state = self._in_content
        return True

    def _in_content(self, is_last: bool) -> bool:
        found = self._markers.search(self._text)
        if found is None:
            num_sure = len(self._text) - (0 if is_last else self._markers.num_held(self._text))
            self._say(self._text[:num_sure])
            self._text = self._text[num_sure:]
            return False
        self._say(self._text[: found.start()])
        self._text = self._text[found.end() :]
        if found[0] in self._begins:
            self._raw, self._in_list, self._state = found[0], False, self._before_call
        return True

    def _before_call(self, is_last: bool) -> bool:
        assert self._format is not None
        self._consume(len(self._text) - len(self._text.lstrip()))
        if not self._text:
            return self._give_back() if is_last else False
        self._scanner, self._num_scanned = ObjectScanner(), 0
        if self._name is not None:
            return self._announce(self._name, 0, self._in_arguments)
        if self._text[0] == "[" and not self._in_list:
            self._in_list = True
            self._consume(1)
        elif self._text[0] == "{":
            self._state = self._in_object
        elif self._format.head:
            self._state = self._in_head
        else:
            return self._give_back()
        return True

    def _in_head(self, is_last: bool) -> bool:
        assert self._format is not None and self._format.head is not None
        found = self._format.head.match(self._text, 0, MAX_HEAD_CHARACTERS)
        if found:
            name = next(filter(None, found.groups()))
            return self._announce(name, found.end(), self._in_markup if self._format.markup else self._in_arguments)
        return self._give_back() if is_last or len(self._text) >= MAX_HEAD_CHARACTERS else False

    def _in_object(self, is_last: bool) -> bool:
        if found := _HEADER.match(self._text, 0, MAX_HEAD_CHARACTERS):
            return self._announce(found[1], found.end(), self._in_object_arguments)
        if _FIRST_KEY.match(self._text, 0, MAX_HEAD_CHARACTERS):
            return self._give_back()
        end = self._scanner.feed(self._text[self._num_scanned :])
        if end is None:
            self._num_scanned = len(self._text)
            return self._break_off() if is_last else False
        end += self._num_scanned
        call = _read_call(self._text[:end])
        if call is None or call[0] not in self._functions:
            self._consume(end)
            return self._give_back()
        self._text = self._text[end:]
        self._emit_start(call[0], call[1])
        return self._end_call()

    def _in_object_arguments(self, is_last: bool) -> bool:
        return self._read_arguments(is_last, self._after_object_arguments)

    def _in_arguments(self, is_last: bool) -> bool:
        return self._read_arguments(is_last, self._after_call)

    def _in_markup(self, is_last: bool) -> bool:
        """Such calls are given once they are complete, since their arguments are written anew."""
        assert self._format is not None and self._format.markup is not None
        found = read_markup(self._format.markup, self._format.ends, self._text)
        if found is None:
            return self._break_off() if is_last else False
        arguments, num_characters = found
        if arguments is None:
            return self._give_back()
        self._text = self._text[num_characters:]
        self._emit_start(self._call_name, write_arguments(arguments, self._functions[self._call_name]))
        return self._end_call()

    def _after_object_arguments(self, is_last: bool) -> bool:
        """Arguments are complete; so is the object, but for its bracket, or other members that say nothing."""
        self._consume(len(self._text) - len(self._text.lstrip()))
        if not self._text:
            return False
        if self._text[0] in ",}":
            self._scanner, self._state = ObjectScanner(depth=1), self._in_other_members
            return True
        return self._end_call()  # models forget that bracket

    def _in_other_members(self, is_last: bool) -> bool:
        end = self._scanner.feed(self._text)
        if end is None:
            self._consume(len(self._text))
            return self._give_back() if is_last and self._raw.strip() else False
        self._text = self._text[end:]
        return self._end_call()

    def _after_call(self, is_last: bool) -> bool:
        assert self._format is not None
        body = self._text.lstrip()
        ends = self._format.ends
        for end in ends:
            if body.startswith(end):
                self._text, self._state = body[len(end) :], self._in_content
                return True
        if not is_last and (not body or any(end.startswith(body) for end in ends)):
            return False
        if body.startswith("]") and self._in_list:
            self._in_list, self._text = False, body[1:]
        elif body[:1] in (",", ";", "{") and body:
            self._consume(len(self._text) - len(body) + (body[0] != "{"))
            self._state = self._before_call
        else:
            self._state = self._in_content
        return True

    # What states do.

    def _read_arguments(self, is_last: bool, then: _State) -> bool:
        end = self._scanner.feed(self._text)
        piece, self._text = self._text[:end], self._text[end:] if end is not None else ""
        if self._whole:
            return self._keep_arguments(piece, end is not None, is_last, then)
        if piece:
            self._deltas.append(ToolCallDelta(self._num_calls - 1, piece))
        self._cut_off = end is None and is_last
        return end is not None and self._end_arguments(then)

    def _keep_arguments(self, piece: str, is_end: bool, is_last: bool, then: _State) -> bool:
        self._arguments.append(piece)
        self._raw += piece
        if not is_end:
            return self._break_off() if is_last else False
        arguments = "".join(self._arguments)
        if parse_object(arguments) is None:
            return self._give_back()
        self._emit_start(self._call_name, arguments)
        return self._end_arguments(then)

    def _end_arguments(self, then: _State) -> bool:
        if then == self._after_call:
            return self._end_call()
        self._state = then
        return True

    def _announce(self, name: str, num_characters: int, then: _State) -> bool:
        if name not in self._functions:
            return self._give_back()
        self._consume(num_characters)
        self._call_name, self._arguments, self._scanner, self._state = name, [], ObjectScanner(), then
        if not self._whole and then != self._in_markup:
            self._emit_start(name, "")
        return True

    def _emit_start(self, name: str, arguments: str) -> None:
        self._deltas.append(ToolCallDelta(self._num_calls, arguments, new_call_id(), name))
        self._num_calls += 1
        self._raw = self._space = ""

    def _end_call(self) -> bool:
        self._raw, self._state = "", self._after_call
        self._done = not self._parallel
        return True

    def _consume(self, num_characters: int) -> None:
        self._raw += self._text[:num_characters]
        self._text = self._text[num_characters:]

    def _give_back(self) -> bool:
        """No call came of it."""
        self._say(self._raw)
        self._raw, self._state = "", self._in_content
        return True

    def _break_off(self) -> bool:
        """The answer ends within a call. A bracket that was never closed hides what follows the call, so that is read again."""
        assert self._format is not None
        text, self._text = self._raw + self._text, ""
        self._num_rereads += 1
        ends = (at + len(end) for end in self._format.ends if (at := text.find(end)) >= 0)
        cut = min(ends, default=len(text)) if self._num_rereads <= MAX_REREADS else len(text)
        self._raw, self._text = text[:cut], text[cut:]
        return self._give_back()

    def _say(self, text: str) -> None:
        text = self._space + text
        sure = text if self._format is None else text.rstrip()
        self._space = text[len(sure) :]
        if sure:
            self._deltas.append(ContentDelta(sure))


def _read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that is a whole object, whatever the order of its members."""
    call = parse_object(text)
    if call is not None and isinstance(call.get("function"), dict):
        call = cast(dict[str, object], call["function"])
    if call is None:
        return None
    name = call.get("name", call.get("tool_name", call.get("function")))
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        arguments = parse_object(arguments)
    elif arguments is None:
        arguments = {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def parse_answer(stream: ToolCallStream, text: str) -> Answer:
    """Reads a whole answer by a fresh stream."""
    content: list[str] = []
    calls: list[ToolCall] = []
    for delta in stream.push(text) + stream.finish():
        if isinstance(delta, ContentDelta):
            content.append(delta.content)
        elif isinstance(delta, ToolCallDelta) and delta.name is not None and delta.id is not None:
            calls.append(ToolCall(delta.id, delta.name, delta.arguments))
        elif isinstance(delta, ToolCallDelta):
            last = calls[delta.index]
            calls[delta.index] = ToolCall(last.id, last.name, last.arguments + delta.arguments)
    return Answer("".join(content) or None if calls else "".join(content), tuple(calls), cut_off=stream.cut_off)
