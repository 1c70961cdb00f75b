"""One streamed answer: server-sent events as they arrive, and what they say of tokens and times. No input or output here.

Of an event only lines that begin with "data:" count, each a whole JSON document, as every OpenAI-compatible server sends them
(https://html.spec.whatwg.org/multipage/server-sent-events.html has comments and other fields, which are passed over).
"""

from __future__ import annotations

from array import array

import msgspec

from cupola.runtime.load_generator.record import RequestRecord


class Delta(msgspec.Struct, frozen=True):
    """Of a chat's chunk, what counts as content."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[object] | None = None

    @property
    def text(self) -> str:
        """The text that a chunk adds to the answer; a space for a part of a tool call."""
        return self.content or self.reasoning_content or self.reasoning or ("" if not self.tool_calls else " ")


class Choice(msgspec.Struct, frozen=True):
    """One of a chunk's choices: `text` in completions, `delta` in chats."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct, frozen=True):
    """Where a prompt's tokens came from."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """The server's count of tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Event(msgspec.Struct, frozen=True):
    """One chunk of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: object = None


_decode_event = msgspec.json.Decoder(Event).decode


class Answer:
    """Takes the pieces of a streamed answer's body, in order."""

    def __init__(self, start_s: float) -> None:
        self._start_s = self._end_s = start_s
        self._rest = b""
        self._times = array("d")
        self._texts: list[str] = []
        self._usage = Usage()
        self._is_finished = False
        self._error: str | None = None

    def feed(self, data: bytes, now_s: float) -> None:
        """Takes what arrived at `now_s`."""
        if self._rest:
            data = self._rest + data
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now_s)

    def record(self, num_input_tokens: int) -> RequestRecord:
        """How it went, all being said; `num_input_tokens` are what was sent, if the server does not say."""
        if self._rest:
            self.feed(b"\n", self._end_s)
        usage, details = self._usage, self._usage.prompt_tokens_details
        is_counted = usage.completion_tokens is not None
        return RequestRecord(
            self._start_s,
            self._end_s,
            self._times or (array("d", [self._end_s]) if self._is_finished else ()),
            num_input_tokens if usage.prompt_tokens is None else usage.prompt_tokens,
            len(self._times) if usage.completion_tokens is None else usage.completion_tokens,
            None if details is None else details.cached_tokens,
            is_counted,
            "".join(self._texts),
            self._error or (None if self._is_finished else "the answer broke off"),
            200,
        )

    def _take(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self._is_finished = self._is_finished or bool(self._times)
            return
        try:
            event = _decode_event(data)
        except msgspec.DecodeError as error:
            self._error = f"a chunk can't be read: {error}"
            return
        if event.usage is not None:
            self._usage = event.usage
        if event.error is not None:
            self._error = f"error in the stream: {error_message(data)}"
        if event.choices:
            self._take_choice(event.choices[0], now_s)

    def _take_choice(self, choice: Choice, now_s: float) -> None:
        text = choice.text if choice.delta is None else choice.delta.text
        opens = choice.delta is not None and not self._times and choice.finish_reason is None
        if text or not (opens or choice.finish_reason is not None):
            self._times.append(now_s)
            self._texts.append(text or "")
        self._end_s = now_s
        self._is_finished = self._is_finished or choice.finish_reason is not None


def error_message(body: bytes) -> str:
    """The message of an error in OpenAI's shape, or of another; one line."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        found = body.decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(key):
            found = found[key]
    return " ".join(str(found).split())[:200]
