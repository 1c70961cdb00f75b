"""`/v1/messages`: Anthropic's Messages API. What it generates is a chat's answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import ClassVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cupola.runtime.server.chat import Chat, begin, count_prompt_tokens
from cupola.runtime.server.generation import EventForm, Generation, encode_named_event, json_response, respond
from cupola.runtime.server.protocol import ChatRequest, Object
from cupola.runtime.server.record import RequestRecord, record_of
from cupola.runtime.server.service import Service
from cupola.runtime.server.translations.anthropic_blocks import chat_messages
from cupola.runtime.server.translations.anthropic_errors import ERROR_RESPONSES, error_event
from cupola.runtime.server.translations.anthropic_output import ContentWriter
from cupola.runtime.server.translations.anthropic_request import NAMES, MessageRequest, PromptRequest, chat_request
from cupola.runtime.server.translations.fields import fields_named
from cupola.runtime.server.translations.pieces import End, streamed_pieces, whole_pieces

STREAMED: dict[int | str, Object] = {200: {"content": {"text/event-stream": {}}}}  # beside JSON
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@dataclass(frozen=True)
class MessageAnswer:
    """A message on its way."""

    body: MessageRequest
    chat: Chat
    writer: ContentWriter = field(default_factory=ContentWriter)
    form: ClassVar[EventForm] = EventForm(encode_named_event, error_event)

    @property
    def generation(self) -> Generation:
        """The generation that the answer is made of."""
        return self.chat.generation

    def whole(self) -> Object:
        """The message, once the generation is finished."""
        pieces, end = whole_pieces(self.chat)
        for piece in pieces:
            self.writer.push(piece)
        self.writer.close()
        return self._message(self.writer.blocks) | self._ended(end) | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[Object]:
        """The message piece by piece."""
        yield {"type": "message_start", "message": self._message([]) | {"usage": self._usage()}}
        yield {"type": "ping"}
        async for piece in streamed_pieces(self.chat):
            for event in self.writer.close() if isinstance(piece, End) else self.writer.push(piece):
                yield event
            if isinstance(piece, End):
                yield {"type": "message_delta", "delta": self._ended(piece), "usage": self._usage()}
                yield {"type": "message_stop"}

    def _message(self, blocks: list[Object]) -> Object:
        name = str(self.chat.head["id"]).removeprefix("chatcmpl-")
        head = {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": self.chat.head["model"]}
        return {**head, "content": blocks, "stop_reason": None, "stop_sequence": None}

    def _ended(self, end: End) -> Object:
        reason = STOP_REASONS.get(end.finish_reason, "end_turn")
        sequence = end.stop_reason if end.finish_reason == "stop" and end.stop_reason in (self.body.stop_sequences or ()) else None
        if reason == "max_tokens" and self.generation.usage()["completion_tokens"] < self.body.max_tokens:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason if sequence is None else "stop_sequence", "stop_sequence": sequence}

    def _usage(self) -> Object:
        """Prompt tokens that came from the cache are counted beside the others, which is known at the end."""
        usage = self.generation.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }


def add_anthropic(app: FastAPI, service: Service) -> None:
    """Adds the routes."""

    @app.post("/v1/messages", responses={**STREAMED, **ERROR_RESPONSES})
    async def create_message(request: Request, body: MessageRequest) -> Response:
        """The next message of a conversation, in Anthropic's Messages API."""
        record = record_of(request)
        return await respond(request, record, _begin(service, record, body), stream=body.stream)

    @app.post("/v1/messages/count_tokens", responses=ERROR_RESPONSES)
    async def count_message_tokens(body: PromptRequest) -> Response:
        """How many tokens the prompt of a message would have."""
        with fields_named(NAMES):
            made, names = _chat_request(body)
        with fields_named(names):
            return json_response({"input_tokens": await count_prompt_tokens(service, made)})


async def _begin(service: Service, record: RequestRecord, body: MessageRequest) -> MessageAnswer:
    with fields_named(NAMES):
        made, names = _chat_request(body)
    with fields_named(names):
        return MessageAnswer(body, await begin(service, record, made))


def _chat_request(body: PromptRequest) -> tuple[ChatRequest, dict[str, str]]:
    """The chat request, and how its fields are called. Raises RequestError."""
    messages, fields = chat_messages(body.messages, body.system)
    tools = body.tools or ()
    names = {f"tools[{i}].function": f"tools[{i}]" for i in range(len(tools))}
    if tools and body.output_config is None and body.output_format is None:
        names["structured_outputs.json"] = "tools"  # whose arguments are what has a form
    names |= {f"tools[{i}].function.parameters": f"tools[{i}].input_schema" for i in range(len(tools))}
    return chat_request(body, messages), {**NAMES, **names, **{f"messages[{i}]": at for i, at in enumerate(fields)}}
