"""One client's connection: uvicorn's, with an end for what it would put up with for ever."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from cupola.runtime.server.errors import error_object
from cupola.runtime.server.request_parser import RequestParser

MAX_HEAD_BYTES = 256 << 10  # a request's line and headers
MIN_BYTES_PER_SECOND = 1000  # of a body that takes longer than `read_timeout`
LOOK_SECONDS = 0.2  # between two looks whether a client that has closed its end is still there
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Limits:
    """Limits on how long clients may make a server wait, in seconds, and on how many may be connected.

    Args:
        send_timeout: for a client to take some of its answer.
        read_timeout: for a request's first byte, for the rest of its head, and for its body unless that keeps coming.
    """

    send_timeout: float = 60.0
    read_timeout: float = 30.0
    max_connections: int = 1024


class Connection(HttpToolsProtocol):
    """Refuses a head without end, and cuts off a client that takes nothing of its answer or does not send its request.

    What is cut off counts as gone: its request is aborted, and what was kept for it is freed. Where there are too many connections, the
    one that has been idle for longest makes room.
    """

    limits = Limits()
    _num_head_bytes = 0
    _reads_head = True
    _half_closed = False
    _idle_since = 0.0
    _deadline: float | None = None  # for what the client is to send; None while nothing is expected
    _reading: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        self.parser = RequestParser(self)  # type: ignore[assignment] # with all that uvicorn asks of httptools' own
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._expect()
        if len(self.connections) > self.limits.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Takes what came; a head that is still unfinished may not be too long."""
        super().data_received(data)
        self._num_head_bytes = self._num_head_bytes + len(data) if self._reads_head else 0
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")

    def on_message_begin(self) -> None:
        """A head begins."""
        self._reads_head = True
        self._expect()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """It is whole."""
        self._reads_head = False
        self._expect()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body: it may take as much longer."""
        if self._deadline is not None:
            longest = self.loop.time() + self.limits.read_timeout
            self._deadline = min(longest, self._deadline + len(body) / MIN_BYTES_PER_SECOND)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._deadline = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. One that has sent a whole request may still wait for the answer, or be gone."""
        if not self._half_closed:
            cycle = self.cycle
            if not self._is_served or cycle.response_started or self.pipeline:
                return False
            if self.scheme == "https" or self.scope["http_version"] != "1.1":
                return False
            self._half_closed, cycle.keep_alive = True, False
            self.transport.write(CONTINUE)  # clients pass over it; the system of one that is gone says so
            self._look()
        return True

    def pause_writing(self) -> None:
        """The client is slow: much of what was sent is not taken yet."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken it."""
        super().resume_writing()
        _cancel(self._stalled)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more has come; what is not taken by now never will be."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._deadline = None
        for timer in (self._stalled, self._reading, self._looking):
            _cancel(timer)
        super().connection_lost(exc)

    @property
    def _is_idle(self) -> bool:
        """True if no request is waiting for an answer and no answer for its client."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not (self.transport.is_closing() or self.transport.get_write_buffer_size())

    @property
    def _is_served(self) -> bool:
        """True while a request that has come whole is being answered."""
        return self.cycle is not None and not (self.cycle.more_body or self.cycle.response_complete)

    def _make_room(self) -> None:
        idle = [other for other in self.connections if other is not self and isinstance(other, Connection) and other._is_idle]
        if idle:
            min(idle, key=lambda other: other._idle_since).transport.abort()
        else:
            self._refuse(503, "too many clients are connected", "too_many_connections", b"retry-after: 1\r\n")

    def _expect(self) -> None:
        """Gives the client its time from now. One timer goes on through all requests: it costs nothing to let it see that all is well."""
        self._deadline = self.loop.time() + self.limits.read_timeout
        if self._reading is None:
            self._reading = self.loop.call_later(self.limits.read_timeout, self._check_deadline)

    def _check_deadline(self) -> None:
        self._reading = None
        if self._deadline is None or self.transport.is_closing():
            return
        if self._is_served or self.flow.read_paused:  # what it sends meanwhile can wait, or we do not even read it
            self._deadline = self.loop.time() + self.limits.read_timeout
        left = self._deadline - self.loop.time()
        if left > 0:
            self._reading = self.loop.call_later(left, self._check_deadline)
        elif self._num_head_bytes == 0 and self._reads_head:  # it never said anything
            self.transport.close()
        elif not self._reads_head and self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(408, "the request did not come in time", "request_timeout")

    def _look(self) -> None:
        """Aborts the request of a client that is gone, else looks again later."""
        channel: socket.socket | None = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or channel is None:
            return
        if channel.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(LOOK_SECONDS, self._look)

    def _refuse(self, status: int, message: str, code: str, headers: bytes = b"") -> None:
        """Answers without the application, and closes."""
        body = msgspec.json.encode(error_object(status, message, None, code))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n" % (len(body), headers)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def connection_type(limits: Limits) -> type[Connection]:
    """The connections of a server: uvicorn makes them itself, so what they know is their class's."""
    return type("Connection", (Connection,), {"limits": limits})
