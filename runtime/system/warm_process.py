"""Processes that have at hand what takes long to prepare, each with a channel to it.

Where the system can fork, one process prepares and is forked, which takes 10 ms and shares that memory. Elsewhere each process prepares for
itself, and one that nobody asked for yet is kept ready.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from cupola.runtime.system.channel import HANDS_DOWN, Arriving, Connection, join, start

if TYPE_CHECKING:
    import subprocess

Prepared = TypeVar("Prepared")


class WarmProcess:
    """Makes processes of `python -m module CHANNEL arguments…`, which calls `serve`. For several threads; starts at the first use.

    A process ends when its channel is closed.
    """

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._module, self._arguments, self._lock = module, tuple(arguments), threading.Lock()
        self._control: socket.socket | None = None  # of the process that is forked
        self._spare: Arriving | None = None
        self._end: Callable[[], object] = _nothing

    def open(self) -> Connection:
        """The channel of a new process. Raises OSError if the system gives none."""
        with self._lock:
            return self._fork() if HANDS_DOWN else self._spawn()

    def close(self) -> None:
        """Ends what is kept ready; the processes that were opened go on."""
        with self._lock:
            self._end()
            self._control = self._spare = None

    def _fork(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            for _ in range(2):  # the process may have been killed since the last time
                control = self._control or self._start_server()
                try:
                    socket.send_fds(control, [b"+"], [theirs.fileno()])
                    break
                except OSError:
                    self._end()
                    self._control = None
        return ours

    def _start_server(self) -> socket.socket:
        process, control = start(self._module, self._arguments, quiet=True)
        assert isinstance(control, socket.socket)
        self._end = weakref.finalize(self, _end_server, process, control)  # at the latest when this object or the program ends
        self._control = control
        return control

    def _spawn(self) -> Arriving:
        opened = self._spare or self._new()
        self._spare = self._new()
        self._end = weakref.finalize(self, self._spare.close)
        return opened

    def _new(self) -> Arriving:
        _, connection = start(self._module, self._arguments, quiet=True)
        assert isinstance(connection, Arriving)
        connection.owns_process = True
        return connection


def serve(channel: str, prepare: Callable[[], Prepared], answer: Callable[[Prepared, socket.socket], None]) -> None:
    """Runs `answer` on a channel, with what `prepare` gives: here, or in a fork for each channel that comes."""
    connection = join(channel)
    prepared = prepare()
    if not HANDS_DOWN:
        with connection:
            answer(prepared, connection)
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes
    gc.freeze()  # what is collected is written to, and would no longer be shared
    while True:
        message, handles, _, _ = socket.recv_fds(connection, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            connection.close()
            with socket.socket(fileno=handles[0]) as own:
                answer(prepared, own)
            os._exit(0)
        os.close(handles[0])


def _nothing() -> None:
    """The end of what never began."""


def _end_server(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    process.kill()
    process.wait()
