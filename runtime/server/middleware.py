"""The middleware before every route: a record and an id, the API key, the size of the body."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cupola.runtime.server.errors import ServerError, describe, error_response, on_error
from cupola.runtime.server.record import RequestRecord, choose_id

OPEN_PATHS = ("/", "/health", "/v1/health", "/ping", "/version")  # and the page's files: what tells nothing and costs nothing
OPEN_FOLDERS = ("/page/",)
JSON_TYPE = re.compile(r"application/([\w.-]+\+)?json\s*(;.*)?", re.ASCII | re.IGNORECASE)
QUIET_PATHS = ("/health", "/v1/health", "/ping", "/metrics")  # asked for every second: no line in the log, as for the page's files


class Observer:
    """Gives each request an id and a line in the log, and an answer even if its route failed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes HTTP requests on with a record in their scope."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = RequestRecord(choose_id(Headers(scope=scope).get("x-request-id")), scope["method"], scope["path"])
        scope["cupola.record"] = record
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                record.status = record.status or message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            status, message, field, code = describe(error)
            record.fail(status, error)
            if started:
                raise  # half an answer can't be mended: the connection ends
            await error_response(status, message, field=field, code=code)(scope, receive, send_with_id)
        finally:
            record.resources.close()
            if record.path not in QUIET_PATHS and not record.path.startswith(OPEN_FOLDERS):
                record.write()


class Guard:
    """Lets in who has a key, if there are any, and JSON of at most `max_body_bytes`."""

    def __init__(self, app: ASGIApp, *, api_keys: Sequence[str], max_body_bytes: int) -> None:
        self._app, self._max_body_bytes = app, max_body_bytes
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            self._check_key(scope["path"], headers)
            if scope["method"] == "POST":
                _check_type(headers.get("content-type", ""))
            length = headers.get("content-length", "0")
            self._check_size(int(length) if length.isdecimal() else 0)
        except ServerError as error:
            response = on_error(None, error)  # type: ignore[arg-type]
            if error.status == 401:
                response.headers["WWW-Authenticate"] = "Bearer"
            return await response(scope, receive, send)
        num_bytes = 0

        async def receive_some() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            try:
                self._check_size(num_bytes)
            except ServerError as error:  # FastAPI lets its own exception alone pass while it reads a body
                raise HTTPException(error.status, error.message) from None
            return message

        await self._app(scope, receive_some, send)

    def _check_key(self, path: str, headers: Headers) -> None:
        if not self._keys or path in OPEN_PATHS or path.startswith(OPEN_FOLDERS):
            return
        scheme, _, key = headers.get("authorization", "Bearer " + headers.get("x-api-key", "")).partition(
            " "
        )  # Anthropic's clients have both
        found = [hmac.compare_digest(key.encode(), known) for known in self._keys]  # all of them, for times to tell nothing
        if scheme.lower() != "bearer" or not any(found):
            raise ServerError(401, "the API key is missing or wrong; send it as `Authorization: Bearer …`", code="invalid_api_key")

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes:
            raise ServerError(413, f"the body has more than {self._max_body_bytes} bytes", code="body_too_large")


def _check_type(content_type: str) -> None:
    """A web page of another site may post anything but JSON without being asked, so nothing else is taken for it."""
    if not JSON_TYPE.fullmatch(content_type):
        raise ServerError(415, f"the Content-Type is {content_type!r:.100}; send application/json", code="unsupported_media_type")


class Prefix:
    """Takes the path under which a proxy shows the server off those that still have it, before anybody else looks at them."""

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what follows the prefix."""
        if scope["type"] == "http" and f"{scope['path']}/".startswith(f"{self._root_path}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root_path) or "/"}
        await self._app(scope, receive, send)
