"""A process and its starter find each other, and nobody else, where descriptors are handed down and where they can't be."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cupola.runtime.system import channel
from cupola.runtime.system.channel import Arriving, Connection, join, start, wait_for
from tests.runtime.system.children import WAYS, take_way

ECHO = """
import sys
from cupola.runtime.system.channel import join
print("said", flush=True)
with join(sys.argv[1]) as connection:
    connection.sendall(sys.argv[2].encode())
    while data := connection.recv(1 << 16):
        connection.sendall(data)
"""


@pytest.fixture(params=WAYS)
def module(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose process answers what it is told, started in each way."""
    (tmp_path / "echo_for_tests.py").write_text(ECHO)
    take_way(request.param, tmp_path, monkeypatch)
    return "echo_for_tests"


@pytest.fixture
def by_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[bytes], Arriving]]:
    """A process that is to connect, and is a little late."""
    (tmp_path / "echo_for_tests.py").write_text(f"import time\ntime.sleep(0.3)\n{ECHO}")
    take_way("port", tmp_path, monkeypatch)
    process, connection = start("echo_for_tests", ["hello"], quiet=True)
    assert isinstance(connection, Arriving)
    connection.owns_process = True
    yield process, connection
    connection.close()
    assert process.returncode is not None


def receive(connection: Connection, size: int) -> bytes:
    data = b""
    deadline = time.monotonic() + 60
    while len(data) < size and time.monotonic() < deadline:
        wait_for([connection], 1)
        try:
            part = connection.recv(size - len(data))
        except BlockingIOError:
            continue
        if not part:
            break
        data += part
    return data


def test_what_is_said_comes_back(module: str) -> None:
    process, connection = start(module, ["hello"], quiet=True)
    connection.setblocking(False)
    assert receive(connection, 5) == b"hello"
    for data in (b"a", b"b" * 50_000):
        assert connection.send(data) == len(data)
        assert receive(connection, len(data)) == data
    connection.close()
    assert process.wait(60) == 0


def test_what_it_writes_is_ours_unless_it_is_to_be_quiet(module: str, capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        process, connection = start(module, ["hello"], quiet=quiet)
        connection.setblocking(False)
        assert receive(connection, 5) == b"hello"
        connection.close()
        assert process.wait(60) == 0
        assert capfd.readouterr().out == ("" if quiet else "said\n")


def test_nothing_has_come_before_it_connects(by_port: tuple[subprocess.Popen[bytes], Arriving]) -> None:
    _, connection = by_port
    for call in (lambda: connection.recv(1), lambda: connection.send(b"a")):
        with pytest.raises(BlockingIOError):
            call()
    assert receive(connection, 5) == b"hello"


def test_strangers_are_not_taken_for_it(by_port: tuple[subprocess.Popen[bytes], Arriving]) -> None:
    _, connection = by_port
    address = connection._listener.getsockname()
    strangers = []
    for said in [b"", b"guess", b"\0" * 32, b"\0" * 100] * (channel.MAX_STRANGERS // 2):
        strangers.append(socket.create_connection(address))
        strangers[-1].sendall(said)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    strangers[-1].close()
    assert receive(connection, 5) == b"hello"
    for stranger in strangers[:-1]:
        stranger.settimeout(60)
        try:
            assert stranger.recv(1) == b""
        except ConnectionError:  # it had sent more than anybody read
            assert stranger.fileno() >= 0
        stranger.close()
    with pytest.raises(ConnectionRefusedError):  # there is nobody to connect to any more
        socket.create_connection(address)


def test_a_process_that_ends_before_it_connects_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_way("port", tmp_path, monkeypatch)
    process, connection = start("no_such_module_for_tests", quiet=True)
    assert isinstance(connection, Arriving)
    with pytest.raises(OSError, match="ended with exit code 1"):
        connection.wait()
    with pytest.raises(OSError, match="ended"):
        connection.recv(1)
    connection.close()
    assert process.returncode == 1


def test_one_that_never_connects_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleep_for_tests.py").write_text("import time; time.sleep(60)")
    take_way("port", tmp_path, monkeypatch)
    process, connection = start("sleep_for_tests", quiet=True)
    assert isinstance(connection, Arriving)
    with pytest.raises(TimeoutError, match=r"in 0\.2 s"):
        connection.wait(0.2)
    connection.owns_process = True
    connection.close()
    assert process.returncode not in (None, 0)


@pytest.mark.parametrize("answer", [b"", b"short", b"\0" * 32])
def test_a_stranger_who_has_the_port_is_not_served(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def deceive() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(100)

        thread = threading.Thread(target=deceive)
        thread.start()
        port = listener.getsockname()[1]
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{port} {'ab' * 32} {'cd' * 32}\n"))
        with pytest.raises(ConnectionRefusedError, match="another program"):
            join(channel.BY_PORT)
        thread.join()
