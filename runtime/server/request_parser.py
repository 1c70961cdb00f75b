"""The parser of requests: httptools', which would take an offer to speak another protocol for the end of the request."""

from __future__ import annotations

from typing import Protocol

import httptools


class RequestCallbacks(Protocol):
    """The parser's callbacks for a request, in this order."""

    def on_message_begin(self) -> None:
        """A request begins."""
        ...

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        ...

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        ...

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        ...

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        ...

    def on_message_complete(self) -> None:
        """It is whole."""
        ...


class RequestParser:
    """Reads requests and ignores `Upgrade`, as a server may that speaks HTTP/1.1 alone (RFC 9110, 7.8).

    Curl and Java's HttpClient offer HTTP/2 with a request that has a body. httptools stops behind the head of such a one; that head is
    then read again without the offer, and the body after it. Nobody is told of the head that was read in vain but for its beginning.
    """

    def __init__(self, callbacks: RequestCallbacks) -> None:
        self._callbacks = callbacks
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()
        self._start()

    def _start(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own

    @property
    def _is_offered(self) -> bool:
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def feed_data(self, data: bytes) -> None:
        """Takes what came. Raises httptools.HttpParserError, or HttpParserUpgrade for CONNECT."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._is_offered:
                raise
            head = self._head_without_offer()
            self._start()
            self._parser.feed_data(head)
            self.feed_data(data[upgrade.args[0] :])

    def _head_without_offer(self) -> bytes:
        line = b"%s %s HTTP/%s" % (self._parser.get_method(), self._url, self._parser.get_http_version().encode())
        headers = (b"%s: %s" % header for header in self._headers if header[0].lower() != b"upgrade")
        return b"\r\n".join((line, *headers, b"", b""))

    def get_method(self) -> bytes:
        """The request's method."""
        method: bytes = self._parser.get_method()
        return method

    def get_http_version(self) -> str:
        """The request's version of HTTP, such as "1.1"."""
        version: str = self._parser.get_http_version()
        return version

    def should_keep_alive(self) -> bool:
        """True if the connection may have another request."""
        return bool(self._parser.should_keep_alive())

    def should_upgrade(self) -> bool:
        """False: the server never switches to another protocol."""
        return False

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers = b"", []
        self._callbacks.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        self._url += url
        self._callbacks.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self._headers.append((name, value))
        self._callbacks.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        if not self._is_offered:
            self._callbacks.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._callbacks.on_body(body)

    def on_message_complete(self) -> None:
        """It is whole."""
        if not self._is_offered:
            self._callbacks.on_message_complete()
