"""A chat's answer as a row of pieces, whether it comes whole or as a stream: what every translation is written from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from cupola.runtime.server.chat import Chat
from cupola.runtime.server.protocol import Object

Kind = Literal["reasoning", "text", "call"]


@dataclass(frozen=True)
class Piece:
    """Some text of the answer. Pieces of one `kind` and `index` (a call's number) that follow each other belong together.

    Args:
        text: of a call, of its arguments.
        id, name: of a call, in its first piece.
        logprobs: of the tokens of a text, if they were asked for.
    """

    kind: Kind
    text: str
    index: int = 0
    id: str = ""
    name: str = ""
    logprobs: tuple[Object, ...] = ()


@dataclass(frozen=True)
class End:
    """How the answer ended: a chat's `finish_reason` and `stop_reason`."""

    finish_reason: str
    stop_reason: int | str | None


def whole_pieces(chat: Chat) -> tuple[list[Piece], End]:
    """The pieces of a finished chat, each a whole."""
    choice: Object = chat.whole()["choices"][0]
    return list(_pieces(choice["message"], _logprobs(choice))), End(choice["finish_reason"], choice["stop_reason"])


async def streamed_pieces(chat: Chat) -> AsyncIterator[Piece | End]:
    """The pieces of a chat as they come, and the end."""
    held: tuple[Object, ...] = ()  # of tokens whose text is still to come
    async for event in chat.events():
        for choice in event["choices"]:
            held += _logprobs(choice)
            for piece in _pieces(choice["delta"], held):
                held = ()
                yield piece
            if choice["finish_reason"]:
                yield End(choice["finish_reason"], choice["stop_reason"])


def _pieces(said: Object, logprobs: tuple[Object, ...]) -> Iterator[Piece]:
    if said.get("reasoning_content"):
        yield Piece("reasoning", said["reasoning_content"])
    if said.get("content"):
        yield Piece("text", said["content"], logprobs=logprobs)
    for index, call in enumerate(said.get("tool_calls") or ()):
        function: dict[str, Any] = call["function"]
        yield Piece("call", function["arguments"], call.get("index", index), call.get("id", ""), function.get("name", ""))


def _logprobs(choice: Object) -> tuple[Object, ...]:
    return tuple((choice["logprobs"] or {}).get("content") or ())
