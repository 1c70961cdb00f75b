"""One client's connection: uvicorn's, with an end for what it would put up with for ever."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cupola.runtime.server.request_parser import RequestParser

MAX_HEAD_BYTES = 256 << 10  # a request's line and headers


class Connection(HttpToolsProtocol):
    """Refuses a head without end, and cuts off a client that takes nothing of its answer for `send_timeout` seconds.

    What is cut off counts as gone: its request is aborted, and what was kept for it is freed.
    """

    send_timeout = 60.0
    _num_head_bytes = 0
    _reads_head = True
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        self.parser = RequestParser(self)  # type: ignore[assignment] # with all that uvicorn asks of httptools' own
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Takes what came; a head that is still unfinished may not be too long."""
        super().data_received(data)
        self._num_head_bytes = self._num_head_bytes + len(data) if self._reads_head else 0
        if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")

    def on_message_begin(self) -> None:
        """A head begins."""
        self._reads_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """It is whole."""
        self._reads_head = False
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client is slow: much of what was sent is not taken yet."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken it."""
        super().resume_writing()
        self._forget_stall()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more has come; what is not taken by now never will be."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._forget_stall()
        super().connection_lost(exc)

    def _forget_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def connection_type(send_timeout: float) -> type[Connection]:
    """The connections of a server: uvicorn makes them itself, so what they know is their class's."""
    return type("Connection", (Connection,), {"send_timeout": send_timeout})
