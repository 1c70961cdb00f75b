"""A process with a channel to it, a stream socket of which it has the other end.

POSIX hands that end down. Windows can't: there the process is told, through its standard input, a port of the loopback interface and two
secrets. It connects and says the first, to which we answer the second, so that neither side takes a stranger for the other.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from hmac import compare_digest
from typing import TYPE_CHECKING, Protocol, TypeAlias

from cupola.runtime.environment import interpreter
from cupola.runtime.system.processes import apart

if TYPE_CHECKING:
    import subprocess  # slow to load, and most who generate need no process

HANDS_DOWN = hasattr(os, "fork") and hasattr(socket, "AF_UNIX")
LOOPBACK, SECRET_BYTES = "127.0.0.1", 32
BY_PORT = "port"  # the argument of a process that is to connect
MAX_STRANGERS = 8  # that have connected and not said the secret
ARRIVAL_SECONDS, LOOK_SECONDS = 60.0, 0.1


class HasFileno(Protocol):
    """Has a descriptor to wait for."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


class Arriving:
    """Our end of a channel whose process has yet to connect: until then a socket that does not block, and has nothing to read.

    Attributes:
        process: who is to connect.
        owns_process: whether closing ends it at once, even in the midst of work.
    """

    def __init__(self, process: subprocess.Popen[bytes], listener: socket.socket, secret: bytes, answer: bytes) -> None:
        self.process, self.owns_process = process, False
        self._listener, self._secret, self._answer = listener, secret, answer
        self._strangers: list[tuple[socket.socket, bytes]] = []  # and what each has said
        self._connection: socket.socket | None = None

    def fileno(self) -> int:
        """The socket to wait for next."""
        waiting = self._strangers[-1][0] if self._strangers else self._listener
        return (self._connection or waiting).fileno()

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""
        assert not flag

    def send(self, data: bytes | bytearray) -> int:
        """As a socket's. Raises BlockingIOError, or OSError if the process has ended."""
        return self._connected().send(data)

    def recv(self, size: int) -> bytes:
        """As a socket's. Raises as `send`."""
        return self._connected().recv(size)

    def close(self) -> None:
        """Closes all sockets: the process hears of it."""
        for each in (self._listener, self._connection, *(stranger for stranger, _ in self._strangers)):
            if each is not None:
                each.close()
        if self.owns_process:
            self.process.kill()
            self.process.wait()

    def wait(self, seconds: float = ARRIVAL_SECONDS) -> socket.socket:
        """The socket, once the process has connected. Raises OSError if it ends before, or takes longer."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(BlockingIOError):
                return self._connected()
            if time.monotonic() > deadline:
                raise TimeoutError(f"it did not connect in {seconds:g} s")
            wait_for([self], LOOK_SECONDS)

    def _connected(self) -> socket.socket:
        if self._connection is None:
            self._look()
        if self._connection is None:
            if (code := self.process.poll()) is not None:
                raise ConnectionResetError(f"it ended with exit code {code}")
            raise BlockingIOError
        return self._connection

    def _look(self) -> None:
        """Takes in who has connected, and finds the one that knows the secret."""
        with suppress(BlockingIOError):
            while True:
                stranger, _ = self._listener.accept()
                stranger.setblocking(False)
                self._strangers.append((stranger, b""))
        heard, self._strangers = self._strangers, []
        for stranger, said in heard:
            said = _hear(stranger, said)
            if self._connection is None and compare_digest(said, self._secret):
                stranger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stranger.send(self._answer)
                self._connection = stranger
            elif self._connection is None and len(said) < SECRET_BYTES:
                self._strangers.append((stranger, said))
            else:
                stranger.close()
        while len(self._strangers) > (0 if self._connection else MAX_STRANGERS):
            self._strangers.pop(0)[0].close()
        if self._connection is not None:
            self._listener.close()


def _hear(stranger: socket.socket, said: bytes) -> bytes:
    """All that a stranger has said so far; too much, if it said no more and went."""
    try:
        return said + (stranger.recv(SECRET_BYTES - len(said)) or bytes(SECRET_BYTES + 1))
    except BlockingIOError:
        return said
    except OSError:
        return bytes(SECRET_BYTES + 1)


Connection: TypeAlias = "socket.socket | Arriving"


def start(module: str, arguments: Sequence[str] = (), *, quiet: bool = False) -> tuple[subprocess.Popen[bytes], Connection]:
    """Starts `python -m module CHANNEL arguments…`, which calls `join(CHANNEL)`, and gives it and our end. Raises OSError.

    Args:
        quiet: whether what it writes to standard output and error is dropped.
    """
    return (_hand_down if HANDS_DOWN else _await)(module, arguments, quiet)


def join(channel: str) -> socket.socket:
    """The end of a process that `start` started. Raises OSError if who started it is gone."""
    if channel != BY_PORT:
        return socket.socket(fileno=int(channel))
    port, secret, answer = sys.stdin.readline().split()
    connection = socket.create_connection((LOOPBACK, int(port)), ARRIVAL_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(bytes.fromhex(secret))
    said = b""
    while len(said) < SECRET_BYTES and (part := connection.recv(SECRET_BYTES - len(said))):
        said += part
    if not compare_digest(said, bytes.fromhex(answer)):
        connection.close()
        raise ConnectionRefusedError("another program has the port of who started this one")
    connection.settimeout(None)
    return connection


def wait_for(readers: Collection[HasFileno], seconds: float, writers: Collection[HasFileno] = ()) -> None:
    """Waits until one of the readers has something to read, or one of the writers, which are among them, takes more; at most so long."""
    with new_selector() as selector:
        for each in readers:
            selector.register(each, selectors.EVENT_READ | (selectors.EVENT_WRITE if each in writers else 0))
        selector.select(max(0.0, seconds))


def new_selector() -> selectors.BaseSelector:
    """A selector of few sockets: by poll, which takes any descriptor, or where there is none, as on Windows, by select."""
    kind: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)
    return kind()


def _hand_down(module: str, arguments: Sequence[str], quiet: bool) -> tuple[subprocess.Popen[bytes], Connection]:
    import subprocess

    ours, theirs = socket.socketpair()
    number, output = theirs.fileno(), subprocess.DEVNULL if quiet else None
    command = [*interpreter(), "-m", module, str(number), *arguments]
    with theirs:
        try:
            process = subprocess.Popen(command, pass_fds=(number,), stdin=subprocess.DEVNULL, stdout=output, stderr=output, **apart())
        except BaseException:
            ours.close()
            raise
    return process, ours


def _await(module: str, arguments: Sequence[str], quiet: bool) -> tuple[subprocess.Popen[bytes], Connection]:
    import subprocess

    secret, answer, output = secrets.token_bytes(SECRET_BYTES), secrets.token_bytes(SECRET_BYTES), subprocess.DEVNULL if quiet else None
    listener = socket.socket()
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # else another of Windows' programs may listen beside us
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        listener.bind((LOOPBACK, 0))
        listener.listen(MAX_STRANGERS)
        listener.setblocking(False)
        command = [*interpreter(), "-m", module, BY_PORT, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, **apart())
    except BaseException:
        listener.close()
        raise
    assert process.stdin is not None
    with suppress(OSError), process.stdin:  # it has ended, which `poll` tells
        process.stdin.write(f"{listener.getsockname()[1]} {secret.hex()} {answer.hex()}\n".encode())
    return process, Arriving(process, listener, secret, answer)
