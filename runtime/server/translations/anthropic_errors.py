"""Errors as Anthropic's clients know them: {"type": "error", "error": {"type", "message"}, "request_id"}."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cupola.runtime.server.protocol import Object

PATH = "/v1/messages"
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class MessageErrorDetail(BaseModel):
    """The detail in an error's body."""

    type: str
    message: str


class MessageErrorBody(BaseModel):
    """The body of every answer other than the one asked for."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str | None = None


# What the routes may answer, for their description in /openapi.json.
ERROR_RESPONSES: dict[int | str, Object] = {
    "4XX": {"description": "The request is wrong, or too much.", "model": MessageErrorBody},
    "5XX": {"description": "The engine failed, is loading, or took too long.", "model": MessageErrorBody},
}


def error_event(status: int, message: str, _field: str | None = None, _code: str | None = None) -> Object:
    """An error; a 4xx without a name of its own is a wrong request, a 5xx a fault of the server."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


class AnthropicErrors:
    """Rewrites what goes wrong below `PATH`, whoever found it: a route, a wrong key, a body that is no JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes requests on."""
        if scope["type"] != "http" or not (scope["path"] == PATH or scope["path"].startswith(f"{PATH}/")):
            return await self._app(scope, receive, send)
        await self._app(scope, receive, Rewriter(send))


class Rewriter:
    """Sends an answer on, and an error in another form. Errors come in one piece."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # of an error
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Takes the next message of an answer."""
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._start)

    async def _send_error(self, start: Message) -> None:
        headers = MutableHeaders(raw=list(start["headers"]))
        if not self._body:  # a HEAD's, or a status that says all
            body = b""
        else:
            error = msgspec.json.decode(self._body)["error"]
            body = msgspec.json.encode({**error_event(start["status"], error["message"]), "request_id": headers.get("x-request-id")})
        headers["content-length"] = str(len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body})
