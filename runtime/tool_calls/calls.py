"""Tool calls in the shapes that OpenAI's chat API gives them."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_DEPTH = 64  # of what is written as JSON again: Python's recursion has an end


@dataclass(frozen=True)
class ToolCall:
    """A whole call. `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str

    def as_openai(self) -> dict[str, object]:
        """An entry of a message's `tool_calls`."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class ContentDelta:
    """Text for the user."""

    content: str

    def as_openai(self) -> dict[str, object]:
        """A chunk's `delta`."""
        return {"content": self.content}


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of the call number `index`: the first brings id and name, each brings text to append to the arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None

    def as_openai(self) -> dict[str, object]:
        """A chunk's `delta`."""
        function: dict[str, object] = {"arguments": self.arguments}
        call: dict[str, object] = {"index": self.index, "function": function}
        if self.id is not None:
            call |= {"id": self.id, "type": "function", "function": {"name": self.name, **function}}
        return {"tool_calls": [call]}


@dataclass(frozen=True)
class ReasoningDelta:
    """A piece of the model's thinking before it answers."""

    text: str

    def as_openai(self) -> dict[str, object]:
        """A chunk's `delta`: DeepSeek's and vLLM's name, and vLLM's newer one."""
        return {"reasoning_content": self.text, "reasoning": self.text}


Delta = ContentDelta | ReasoningDelta | ToolCallDelta


@dataclass(frozen=True)
class Answer:
    """A whole answer, split into what the user reads and the tools that are called. `content` is None if calls are all there is.

    `reasoning` is what the model thought before; None if it did not. `cut_off` says that the last call is not complete.
    """

    content: str | None
    tool_calls: tuple[ToolCall, ...]
    reasoning: str | None = None
    cut_off: bool = False

    def as_openai(self) -> dict[str, object]:
        """A choice's `message`."""
        message: dict[str, object] = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message |= ReasoningDelta(self.reasoning).as_openai()
        return message | {"tool_calls": [call.as_openai() for call in self.tool_calls]} if self.tool_calls else message

    def finish_reason(self, reason: str) -> str:
        """The choice's finish reason, from the engine's: "tool_calls" if there are any, unless the last one is cut off."""
        return "tool_calls" if self.tool_calls and not self.cut_off else reason


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{uuid.uuid4().hex[:24]}"


def parse_object(text: str) -> dict[str, object] | None:
    """The JSON object that `text` holds; None if it holds anything else, or more than `MAX_DEPTH` levels."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):  # a number of too many digits is a ValueError too
        return None
    return value if isinstance(value, dict) and not is_deeper(value, MAX_DEPTH) else None


def is_deeper(value: object, max_depth: int) -> bool:
    """True if lists and objects are nested in more than `max_depth` levels, with the scalars in them as one."""
    level = [value]
    for _ in range(max_depth):
        level = [inner for outer in level for inner in _children(outer)]
    return bool(level)


def _children(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # nothing could write it as JSON again
        raise ValueError(f"{text} is too large")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
