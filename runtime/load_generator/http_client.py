"""HTTP/1.1 as a load generator needs it: connections that are kept, and bodies given on as they arrive.

The generator runs beside the engine that it measures, and a general client takes too much of the CPU for each streamed chunk: httpx
130 µs, h11 39 µs, this 7 µs on the same machine (httptools parses, uvloop reads).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import SplitResult

import httptools

Clock = Callable[[], float]
Receive = Callable[[bytes, float], None]


@dataclass(frozen=True)
class Response:
    """A status, and the body, unless it was given on while it arrived."""

    status: int
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection; httptools calls the `on_…` methods."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._now_s = clock, 0.0
        self._receive: Receive | None = None
        self._done: asyncio.Future[Response] | None = None
        self.is_reusable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    async def exchange(self, request: bytes, receive: Receive | None) -> Response:
        """Sends a request and takes its response. Raises ConnectionError, or httptools' error."""
        self._parser = httptools.HttpResponseParser(self)
        self._receive, self._body = receive, bytearray()
        self._status, self._has_length, self.has_begun = 0, False, False
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._done
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.is_reusable = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._now_s, self.has_begun = self._clock(), True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_reusable = False
        if self._done is None:
            return
        if error is None and self._status and not self._has_length:  # such a body ends with the connection
            self.on_message_complete()
        self._end(error or ConnectionError("the server closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._has_length = self._has_length or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._receive is not None and self._status == 200:
            self._receive(body, self._now_s)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        self.is_reusable = self.is_reusable and self._has_length and self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(Response(self._status, bytes(self._body)))

    def _end(self, error: Exception) -> None:
        self.is_reusable = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)


class HttpClient:
    """Requests to one server. Connections are opened as they are needed, and used again.

    Args:
        url: scheme, host and port are used.
        headers: sent with every request.
        timeout_s: a request that takes longer fails with TimeoutError.
        clock: seconds; what times are measured with.
    """

    def __init__(self, url: SplitResult, headers: dict[str, str], timeout_s: float, clock: Clock = time.perf_counter) -> None:
        assert url.hostname is not None
        self._ssl = ssl.create_default_context() if url.scheme == "https" else None
        self._host, self._port = url.hostname, url.port or (443 if self._ssl else 80)
        self._timeout_s, self._clock = timeout_s, clock
        self._head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": url.netloc.rpartition("@")[2], **headers}.items())
        self._idle: list[_Connection] = []

    async def request(self, method: str, path: str, body: bytes = b"", receive: Receive | None = None) -> Response:
        """One request; the body of a response with status 200 goes to `receive`, piece by piece with its time, if that is given.

        Raises:
            OSError: there is no connection, it broke, or (TimeoutError) it took too long.
            httptools.HttpParserError: what came is not HTTP.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode("ascii") + body
        async with asyncio.timeout(self._timeout_s):
            connection = self._take_idle()
            if connection is not None:
                try:
                    return await self._exchange(connection, request, receive)
                except ConnectionError:  # the server closed it while it was idle: nothing came back, so ask anew
                    if connection.has_begun:
                        raise
            return await self._exchange(await self._connect(), request, receive)

    def close(self) -> None:
        """Closes what is open."""
        while self._idle:
            self._idle.pop().close()

    async def _exchange(self, connection: _Connection, request: bytes, receive: Receive | None) -> Response:
        response = await connection.exchange(request, receive)
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self._clock), self._host, self._port, ssl=self._ssl)
        return connection

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
        return None
