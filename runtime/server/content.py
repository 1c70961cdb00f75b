"""Bodies that come compressed, and HEAD."""

from __future__ import annotations

import zlib

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cupola.runtime.server.errors import error_response

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Content:
    """Decodes a request's body, up to `max_bytes` of it, and answers HEAD as GET: the server leaves the body of that answer out."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes requests on as if they had come plainly."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        coding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
        if coding == "identity":
            return await self._app(scope, receive, send)
        if coding not in WINDOW_BITS:
            problem = f"the Content-Encoding is {coding!r:.60}; send {', '.join(WINDOW_BITS)} or none"
            refused = error_response(415, problem, code="unsupported_content_encoding", headers={"Accept-Encoding": "gzip, deflate"})
            return await refused(scope, receive, send)
        unread = (b"content-encoding", b"content-length")
        plain = {**scope, "headers": [header for header in scope["headers"] if header[0] not in unread]}
        await self._app(plain, Decoder(coding, receive, self._max_bytes), send)


class Decoder:
    """A body's messages, decoded. Raises HTTPException if the body is damaged, or longer than `max_bytes`."""

    def __init__(self, coding: str, receive: Receive, max_bytes: int) -> None:
        self._coding, self._receive, self._max_bytes = coding, receive, max_bytes
        self._decompressor, self._num_bytes, self._is_empty = zlib.decompressobj(WINDOW_BITS[coding]), 0, True

    async def __call__(self) -> Message:
        """The next message."""
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        data = message.get("body", b"")
        self._is_empty = self._is_empty and not data
        body = self._decode(data)
        if not (message.get("more_body", False) or self._decompressor.eof or self._is_empty):
            raise HTTPException(400, f"the body is cut off: its {self._coding} has no end")
        return {**message, "body": body}

    def _decode(self, data: bytes) -> bytes:
        try:
            decoded = self._decompressor.decompress(data, self._max_bytes - self._num_bytes + 1)
        except zlib.error:
            raise HTTPException(400, f"the body is not the {self._coding} that its Content-Encoding says") from None
        self._num_bytes += len(decoded)
        if self._num_bytes > self._max_bytes:
            raise HTTPException(413, f"the body has more than {self._max_bytes} bytes, decoded")
        if self._decompressor.unused_data:
            raise HTTPException(400, f"the body goes on behind the end of its {self._coding}")
        return decoded
