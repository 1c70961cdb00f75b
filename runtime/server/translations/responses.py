"""`/v1/responses`: OpenAI's Responses API. What it generates is a chat's answer; what it keeps is in memory."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cupola.runtime.errors import RequestError
from cupola.runtime.server.chat import Chat, begin, count_prompt_tokens
from cupola.runtime.server.errors import ServerError, describe
from cupola.runtime.server.generation import EventForm, Generation, encode_named_event, json_response, respond
from cupola.runtime.server.protocol import Object
from cupola.runtime.server.record import RequestRecord, record_of
from cupola.runtime.server.service import Service
from cupola.runtime.server.translations.fields import fields_named
from cupola.runtime.server.translations.pieces import End, streamed_pieces, whole_pieces
from cupola.runtime.server.translations.responses_items import Conversation, conversation_of
from cupola.runtime.server.translations.responses_output import OutputWriter, new_id
from cupola.runtime.server.translations.responses_request import NAMES, InputRequest, ResponseRequest, chat_request
from cupola.runtime.server.translations.responses_store import ResponseStore

Items = tuple[Object, ...]
MAX_LISTED = 100


@dataclass
class ResponseAnswer:
    """A response on its way. `input_items` are what was asked, `history` the conversation up to there."""

    chat: Chat
    store: ResponseStore | None
    input_items: Items
    history: Items
    head: Object
    writer: OutputWriter = field(default_factory=OutputWriter)
    num_events: int = 0
    num_reasoning: int = 0

    @property
    def generation(self) -> Generation:
        """The generation that the answer is made of."""
        return self.chat.generation

    @property
    def form(self) -> EventForm:
        """Named events, without a mark at the end: the last one is the response as it ended."""
        return EventForm(encode_named_event, self._error_event)

    def whole(self) -> Object:
        """The response, once the generation is finished."""
        pieces, end = whole_pieces(self.chat)
        for piece in pieces:
            self.writer.push(piece)
        self.writer.finish(_status(end))
        return self._finished(end)

    async def events(self) -> AsyncIterator[Object]:
        """The response piece by piece."""
        yield self._numbered({"type": "response.created", "response": self._response("in_progress")})
        yield self._numbered({"type": "response.in_progress", "response": self._response("in_progress")})
        try:
            async for piece in streamed_pieces(self.chat):
                if isinstance(piece, End):
                    for event in self.writer.finish(_status(piece)):
                        yield self._numbered(event)
                    response = self._finished(piece)
                    yield self._numbered({"type": f"response.{response['status']}", "response": response})
                else:
                    for event in self.writer.push(piece):
                        yield self._numbered(event)
        except Exception as error:
            failed = {"code": "server_error", "message": describe(error)[1]}
            yield self._numbered({"type": "response.failed", "response": self._response("failed", {"error": failed})})
            raise

    def _numbered(self, event: Object) -> Object:
        self.num_events += 1
        return {**event, "sequence_number": self.num_events - 1}

    def _error_event(self, status: int, message: str, at: str | None, code: str | None) -> Object:
        return self._numbered({"type": "error", "code": code or str(status), "message": message, "param": at})

    def _response(self, status: str, changed: Mapping[str, object] = MappingProxyType({})) -> Object:
        return {**self.head, "status": status, "output": [], **changed}

    def _finished(self, end: End) -> Object:
        is_cut = _status(end) == "incomplete"
        response = self._response(
            _status(end),
            {
                "output": self.writer.items,
                "usage": self._usage(),
                "completed_at": None if is_cut else int(time.time()),
                "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            },
        )
        if self.store is not None:
            self.store.add(response, self.input_items, (*self.history, *self.writer.items))
        return response

    def _usage(self) -> Object:
        usage = self.generation.usage()
        details = usage.get("completion_tokens_details") or {}
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
            "total_tokens": usage["total_tokens"],
        }


def _status(end: End) -> str:
    return "incomplete" if end.finish_reason == "length" else "completed"


def add_responses(app: FastAPI, service: Service) -> None:
    """Adds the routes; each server keeps responses of its own."""
    store = ResponseStore()

    @app.post("/v1/responses", responses={200: {"content": {"text/event-stream": {}}}})
    async def create_response(request: Request, body: ResponseRequest) -> Response:
        """The next turn of a conversation, in OpenAI's Responses API."""
        record = record_of(request)
        return await respond(request, record, _begin(service, store, record, body), stream=body.stream)

    @app.post("/v1/responses/input_tokens")
    async def count_input_tokens(body: InputRequest) -> Response:
        """How many tokens the prompt of a response would have."""
        _, _, conversation = _conversation(store, body)
        with fields_named(_names(body, conversation)):
            num_tokens = await count_prompt_tokens(service, chat_request(body, conversation.messages))
        return json_response({"object": "response.input_tokens", "input_tokens": num_tokens})

    _add_stored(app, store)


def _add_stored(app: FastAPI, store: ResponseStore) -> None:
    @app.get("/v1/responses/{response_id}")
    async def retrieve_response(response_id: str, stream: bool = False) -> Response:
        """A response that is still kept."""
        if stream:
            raise RequestError("is not supported for a response that has ended", field="stream", fix="leave it out")
        return json_response(store.get(response_id).response)

    @app.delete("/v1/responses/{response_id}")
    async def delete_response(response_id: str) -> Response:
        """Forgets a response."""
        store.remove(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @app.get("/v1/responses/{response_id}/input_items")
    async def list_input_items(response_id: str, limit: int = 20, order: str = "desc", after: str | None = None) -> Response:
        """The input items of a response."""
        return json_response(_listed(store.get(response_id).input_items, limit, order, after))

    @app.post("/v1/responses/{response_id}/cancel")
    async def cancel_response(response_id: str) -> Response:
        """Refused: no response is generated in the background."""
        store.get(response_id)
        raise RequestError("was not created with background, and has ended", field="response_id", fix="close the connection to cancel")


async def _begin(service: Service, store: ResponseStore, record: RequestRecord, body: ResponseRequest) -> ResponseAnswer:
    service.check_any_model(body.model)
    body.check()
    if body.input is None:
        raise RequestError("is missing", field="input", fix="give a text, or a list of items")
    input_items, history, conversation = _conversation(store, body)
    with fields_named(_names(body, conversation)):
        chat = await begin(service, record, chat_request(body, conversation.messages))
    with contextlib.ExitStack() as stack:
        stack.callback(chat.generation.close)
        answer = ResponseAnswer(chat, store if body.store else None, input_items, history, _head(service, body, chat))
        stack.pop_all()
    return answer


def _conversation(store: ResponseStore, body: InputRequest) -> tuple[Items, Items, Conversation]:
    """The request's new input items, the items of the whole conversation, and its chat. Raises RequestError, ServerError."""
    given = body.input or []
    items = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    found = [store.item(item.get("id"), f"input[{i}]") if item.get("type") == "item_reference" else item for i, item in enumerate(items)]
    asked = tuple(map(_written_out, found))
    before: Items = ()
    if body.previous_response_id is not None:
        before = store.get(body.previous_response_id, "previous_response_id").history
    named = [(item, f"previous_response_id.input[{i}]") for i, item in enumerate(before)]
    named += [(item, "input" if isinstance(given, str) else f"input[{i}]") for i, item in enumerate(asked)]
    return asked, (*before, *asked), conversation_of(body.instructions, named)


def _written_out(item: Object) -> Object:
    """An input item as it is listed: with an id, and text as a part of its message."""
    written = item if item.get("id") else {**item, "id": new_id("item")}
    content = written.get("content")
    if "role" not in written or not isinstance(content, str):
        return written
    kind: Object = {"type": "output_text", "annotations": []} if written["role"] == "assistant" else {"type": "input_text"}
    return {**written, "type": "message", "content": [{**kind, "text": content}], "status": "completed"}


def _names(body: InputRequest, conversation: Conversation) -> dict[str, str]:
    tools = {f"tools[{i}].function": f"tools[{i}]" for i in range(len(body.tools or ()))}
    if body.text is None or body.text.format is None:
        tools["structured_outputs.json"] = "tools"  # whose arguments are what has a form
    return {**NAMES, **tools, **{f"messages[{i}]": at for i, at in enumerate(conversation.fields)}, "messages": "input"}


def _head(service: Service, body: ResponseRequest, chat: Chat) -> Object:
    """The fields of a response that are known from its beginning."""
    given = body.model_dump(by_alias=True, exclude_unset=True)
    defaults = service.defaults
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": chat.head["created"],
        "completed_at": None,
        "model": chat.head["model"],
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None, **given.get("reasoning", {})},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store,
        "temperature": chat.body.temperature if chat.body.temperature is not None else defaults.temperature,
        "text": raw({"format": {"type": "text"}, **given.get("text", {})}),
        "tool_choice": raw(body.tool_choice or "auto"),
        "tools": raw([{"parameters": None, "strict": False, **tool} for tool in body.tools or ()]),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": chat.body.top_p if chat.body.top_p is not None else defaults.top_p,
        "truncation": body.truncation,
        "usage": None,
        "user": body.user,
    }


def raw(value: object) -> msgspec.Raw:
    """A client's own JSON, to be said again: msgspec writes no integers of 2⁶⁴ or more."""
    return msgspec.Raw(json.dumps(value).encode())


def _listed(items: Sequence[Object], limit: int, order: str, after: str | None) -> Object:
    if not 1 <= limit <= MAX_LISTED:
        raise RequestError(f"is {limit}", field="limit", fix=f"give 1 to {MAX_LISTED}")
    if order not in ("asc", "desc"):
        raise RequestError(f"is {order!r:.60}", field="order", fix="give asc or desc")
    ordered = list(items) if order == "asc" else list(reversed(items))
    ids = [item["id"] for item in ordered]
    if after is not None and after not in ids:
        raise ServerError(404, f"the response has no input item {after!r:.100}", field="after")
    begin_at = 0 if after is None else ids.index(after) + 1
    page = ordered[begin_at : begin_at + limit]
    return {
        "object": "list",
        "data": [raw(item) for item in page],
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": begin_at + limit < len(ordered),
    }
