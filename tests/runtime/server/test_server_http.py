"""HTTP beside plain requests: offers of another protocol, HEAD, compressed bodies, schemes in any case."""

from __future__ import annotations

import gzip
import json
import socket
import zlib

import httpx
import pytest

from tests.runtime.server.harness import CHAT, COMPLETIONS, PATIENCE, Server, error_of

BODY = json.dumps({"prompt": "a", "max_tokens": 2, "ignore_eos": True}).encode()
LIMIT = 16 << 20  # bytes of a body
OFFER = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"


def request(body: bytes, headers: str, target: str = f"POST {COMPLETIONS}") -> bytes:
    return f"{target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}\r\n".encode() + body


def read_until(connection: socket.socket, text: bytes) -> bytes:
    received = b""
    while text not in received:
        received += connection.recv(1 << 16) or pytest.fail(f"it ended: {received!r}")
    return received


LENGTH = f"Content-Length: {len(BODY)}\r\n"
CHUNKED = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (BODY[:9], BODY[9:])) + b"0\r\n\r\n"


@pytest.mark.parametrize("offer", [OFFER, OFFER.replace("h2c", "websocket"), "upgrade: TLS/1.3\r\nconnection: upgrade\r\n"], ids=ascii)
@pytest.mark.parametrize("pieces", [1, 2, 9, 1000])
def test_an_offer_to_upgrade_is_ignored(server: Server, offer: str, pieces: int):
    """As curl --http2 and Java's HttpClient make it with each first request."""
    for whole in (request(BODY, offer + LENGTH), request(CHUNKED, "Transfer-Encoding: chunked\r\n" + offer)):
        with server.connect() as connection:
            for i in range(pieces):
                connection.sendall(whole[i * len(whole) // pieces : (i + 1) * len(whole) // pieces])
            assert read_until(connection, b'"completion_tokens":2').startswith(b"HTTP/1.1 200")
            connection.sendall(request(b"", OFFER, "GET /health") + request(b"", "", "GET /version"))  # the connection goes on
            read_until(connection, b'{"version":')


def test_connect_is_no_upgrade(server: Server):
    with server.connect() as connection:
        connection.sendall(b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(12).split()[1] in (b"400", b"404", b"405")


def test_head_works_where_get_does(server: Server):
    for path in ("/health", "/v1/models", "/v1/models/tiny", "/version", "/metrics", "/openapi.json", "/", "/page/app.js"):
        with_body, without = server.http.get(path), server.http.head(path)
        assert (without.status_code, without.content) == (200, b""), path
        assert without.headers["content-type"] == with_body.headers["content-type"]
    assert server.http.head(COMPLETIONS).status_code == 405
    assert server.http.head("/nowhere").status_code == 404


@pytest.mark.parametrize(("coding", "encode"), [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(server: Server, coding: str, encode):
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    response = server.http.post(COMPLETIONS, content=encode(BODY), headers=headers)
    assert response.status_code == 200, response.text
    chunks = (bytes([byte]) for byte in encode(BODY))  # in chunks of one byte
    assert server.http.post(COMPLETIONS, content=chunks, headers=headers).status_code == 200


def test_compressed_bodies_that_are_none(server: Server):
    def post(coding: str, content: bytes) -> httpx.Response:
        return server.http.post(CHAT, content=content, headers={"Content-Type": "application/json", "Content-Encoding": coding})

    whole = gzip.compress(BODY)
    for content in (BODY, whole[:-9], whole + b"x", whole[:-5] + b"xxxxx", zlib.compress(BODY), b""):
        error_of(post("gzip", content))
    for coding in ("br", "zstd", "compress", "gzip, gzip", "x" * 10_000):
        response = post(coding, whole)
        assert error_of(response, 415)["code"] == "unsupported_content_encoding"
        assert response.headers["Accept-Encoding"] == "gzip, deflate"


def test_a_small_body_that_becomes_a_large_one(server: Server):
    bomb = gzip.compress(BODY + b" " * (LIMIT - len(BODY) + 1), 9)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    error_of(server.http.post(COMPLETIONS, content=bomb, headers=headers, timeout=PATIENCE), 413)
    fits = gzip.compress(BODY + b" " * (LIMIT - len(BODY)), 9)
    assert server.http.post(COMPLETIONS, content=fits, headers=headers).status_code == 200
