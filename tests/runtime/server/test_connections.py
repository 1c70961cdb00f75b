"""Clients that send nothing, or never come to an end, and clients without number."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cupola.runtime.errors import OptionError
from cupola.runtime.server import descriptors
from tests.runtime.server.conftest import ENDLESS
from tests.runtime.server.harness import COMPLETIONS, PATIENCE, Server, eventually, run_server, unharmed_alone
from tests.systems import needs

MAX_CONNECTIONS = 6  # fewer than run together
HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
LONG = {"prompt": [1, 2, 3], "max_tokens": ENDLESS, "temperature": 0, "ignore_eos": True}
SHORT = {"prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def strict(endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--read-timeout", "0.5", "--max-connections", str(MAX_CONNECTIONS)]
    with run_server(endless, tmp_path_factory.mktemp("strict"), *options) as server:
        yield server


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            received += data
    return received


def whole(body: dict) -> bytes:
    content = json.dumps(body).encode()
    return HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content


UNFINISHED = {
    "nothing": b"",
    "a line": b"POST /v1/compl",
    "a head": HEAD,
    "no body": HEAD + b"Content-Length: 100\r\n\r\n",
    "half a body": HEAD + b'Content-Length: 100\r\n\r\n{"prompt"',
    "a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n",
    "a body for nobody": b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
}


@pytest.mark.parametrize("what", UNFINISHED)
def test_who_does_not_send_a_request_is_cut_off(strict: Server, what: str):
    with unharmed_alone(strict), strict.connect() as connection:
        connection.sendall(UNFINISHED[what])
        answer = answer_of(connection)  # which ends only if the server ends it
        expected = {"nothing": b"", "a body for nobody": b"HTTP/1.1 404 "}.get(what, b"HTTP/1.1 408 ")
        assert answer.startswith(expected) and (expected or not answer)


def test_who_sends_drop_by_drop_is_cut_off(strict: Server):
    with unharmed_alone(strict), strict.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        connection.settimeout(0.05)
        answer = None
        for _ in range(int(PATIENCE / 0.05)):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b" ")
            try:
                answer = connection.recv(1 << 16)
                break
            except TimeoutError:
                continue
        assert answer is not None and answer.startswith(b"HTTP/1.1 408 ")


def test_who_waits_for_an_answer_is_not_cut_off(strict: Server):
    """However long it takes, and whatever comes behind it on the same connection."""
    with unharmed_alone(strict), strict.connect() as connection:
        connection.sendall(whole({**SHORT, "max_tokens": 3000}) + b"POST /v1/compl")
        received = b""
        while b"}}" not in received:
            received += connection.recv(1 << 16)
        assert received.startswith(b"HTTP/1.1 200 OK") and b'"completion_tokens":3000' in received


def test_idle_connections_make_room(strict: Server):
    """The oldest go first; whoever is being answered stays."""
    with unharmed_alone(strict), contextlib.ExitStack() as stack:
        busy = stack.enter_context(strict.start_request({**LONG, "stream": True}))
        eventually(lambda: b"data: " in busy.recv(1 << 16))
        crowd = [stack.enter_context(strict.connect()) for _ in range(3 * MAX_CONNECTIONS)]
        assert answer_of(crowd[0]) == b""
        with strict.connect() as connection:
            connection.sendall(whole(SHORT))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert busy.recv(1)


def test_where_nobody_is_idle_the_new_one_is_refused(strict: Server):
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            busy = stack.enter_context(strict.start_request({**LONG, "stream": True}))
            eventually(lambda busy=busy: b"data: " in busy.recv(1 << 16))
        refused = stack.enter_context(strict.connect())
        head, _, body = answer_of(refused).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in head.lower()
        assert json.loads(body)["error"]["code"] == "too_many_connections"
    strict.wait_idle()


def test_an_engine_dies_while_no_descriptor_is_left(tiny: Path, tmp_path: Path):
    """It comes back as soon as there are some, and until then the log says little."""
    with run_server(tiny, tmp_path) as server:
        process = psutil.Process(server.process.pid)
        process.rlimit(psutil.RLIMIT_NOFILE, (128, 128))  # less than the server was started with
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(server.connect())
            eventually(lambda: process.num_fds() >= 127)
            server.engine().kill()
            eventually(lambda: any("trying again" in line["message"] for line in server.lines()))
        eventually(lambda: server.health() == (200, "ready"))
        assert server.complete(**SHORT)["choices"][0]["finish_reason"] == "length"
        assert server.log.stat().st_size < 50_000


def test_a_half_closed_client_gets_its_answer(strict: Server):
    with unharmed_alone(strict):
        for path, expected in ((COMPLETIONS, 200), ("/v1/chat/completions", 200)):
            messages = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 500, "temperature": 0}
            content = json.dumps({**SHORT, "max_tokens": 500} if path == COMPLETIONS else messages).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            status, body = strict.send_raw(head.encode() + content, end=True)
            assert status == expected and body["usage"]["completion_tokens"] > 0


def test_a_half_closed_client_gets_its_stream(strict: Server):
    with unharmed_alone(strict), strict.connect() as connection:
        connection.sendall(whole({**SHORT, "stream": True}))
        connection.shutdown(socket.SHUT_WR)
        assert answer_of(connection).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# How many there may be ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limits that the process has, the latest last."""
    found: list[tuple[int, int]] = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: found[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, pair: found.append(pair))
    return found


@needs("limits of open files")
def test_the_limit_is_raised_as_far_as_it_is_needed(limits: list[tuple[int, int]]):
    assert descriptors.max_connections(100) == 100
    assert len(limits) == 1
    assert descriptors.max_connections(2000) == 2000
    assert limits[-1] == (2000 + descriptors.RESERVED, 4096)


@needs("limits of open files")
def test_where_it_can_not_be_raised_fewer_may_come(limits: list[tuple[int, int]], caplog: pytest.LogCaptureFixture):
    assert descriptors.max_connections(10_000) == 4096 - descriptors.RESERVED
    assert "ulimit -n" in caplog.text


@pytest.mark.parametrize("wanted", [0, -1, True, 1.5])
def test_a_number_that_makes_no_sense(wanted: object):
    with pytest.raises(OptionError, match="max_connections"):
        descriptors.max_connections(wanted)  # type: ignore[arg-type]


@needs("limits of open files")
def test_a_limit_that_leaves_no_connections(limits: list[tuple[int, int]]):
    limits.append((64, 64))
    with pytest.raises(OptionError, match="ulimit -n"):
        descriptors.max_connections(100)
