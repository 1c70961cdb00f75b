"""The server's view of the engine's process: starts it, hands it requests, sees it die."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from enum import Enum

import msgspec

from cupola.runtime.engine.outputs import EngineStats
from cupola.runtime.errors import ArtifactError, EngineError, InputError, RequestError
from cupola.runtime.server import messages as m
from cupola.runtime.system import channel

EXIT_SECONDS = 10.0  # for the engine's process to end after its socket did
LOST_SECONDS = 1.0  # the same, if it was not us who closed the socket
PINGS = 4  # in the time after which an engine that does not answer is stalled


class Health(Enum):
    """The states that `/health` reports."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"
    DEAD = "dead"


class RequestStream:
    """The outputs of some requests, as they come. Closing it before their end aborts those that are unfinished."""

    def __init__(self, client: EngineClient, request_ids: Sequence[str]) -> None:
        self.request_ids = tuple(request_ids)
        self._client, self._unfinished = client, set(request_ids)
        self._queue: asyncio.Queue[m.RequestDelta | Exception] = asyncio.Queue()

    def put(self, item: m.RequestDelta | Exception) -> None:
        """Takes what came from the engine."""
        self._queue.put_nowait(item)

    async def __aiter__(self) -> AsyncIterator[m.RequestDelta]:
        """Raises RequestError if the engine refused a request, EngineError if it failed."""
        while self._unfinished:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item.finished:
                self._unfinished.discard(item.request_id)
            yield item

    def close(self) -> None:
        """Frees what unfinished requests hold."""
        for request_id in self._unfinished:
            self._client.forget(request_id)


class EngineClient:
    """One engine in a process of its own, for the event loop that calls `start`.

    Args:
        on_stats: is told the engine's state after each step.
        stall_timeout: seconds without a step, though there is work, after which the engine is not healthy.
    """

    def __init__(self, start: m.Start, on_stats: Callable[[EngineStats], None], stall_timeout: float) -> None:
        self._start, self._on_stats, self._stall_timeout = start, on_stats, stall_timeout
        self._decoder = msgspec.msgpack.Decoder(m.ToServer)
        self._streams: dict[str, RequestStream] = {}
        self._num_sequences_of: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[m.Ready] | None = None
        self._heard = time.monotonic()
        self._pinged = False  # and no answer has come
        self._pings: asyncio.TimerHandle | None = None
        self.died = asyncio.Event()

    async def start(self) -> None:
        """Starts the process; `ready` says when the model is there. Raises OSError if the system gives no process or no socket."""
        self._process, connection = channel.start(f"{__package__}.engine_process")
        try:
            ours = await asyncio.to_thread(connection.wait) if isinstance(connection, channel.Arriving) else connection
            loop = asyncio.get_running_loop()
            self._ready = loop.create_future()
            self._transport, _ = await loop.create_connection(lambda: _Receiver(self._receive, self._lost), sock=ours)
        except BaseException:
            connection.close()
            raise
        self._send(self._start)

    async def ready(self) -> m.Ready:
        """Waits for the model. Raises ArtifactError or EngineError if it can't be loaded."""
        assert self._ready is not None
        return await asyncio.shield(self._ready)

    @property
    def health(self) -> Health:
        """How the engine is; it is stalled if it has work, or was asked whether it is there, and has said nothing for long."""
        if self.died.is_set():
            return Health.DEAD
        if self._ready is None or not self._ready.done():
            return Health.LOADING
        stalled = (self._streams or self._pinged) and time.monotonic() - self._heard > self._stall_timeout
        return Health.STALLED if stalled else Health.READY

    @property
    def num_sequences(self) -> int:
        """Sequences asked for that the engine has not finished, whether or not anybody reads them."""
        return sum(self._num_sequences_of.values())

    def submit(self, adds: Sequence[m.Add]) -> RequestStream:
        """Hands requests to the engine. Raises EngineError if there is none; whatever is raised, nothing was handed over or counted."""
        if self.died.is_set():
            raise EngineError("the engine's process has ended")
        self._write(b"".join(map(m.frame, adds)))  # first: what can't be encoded or written leaves no trace
        if not self._streams:
            self._heard = time.monotonic()  # it was idle: its time to answer begins now
        stream = RequestStream(self, [add.request_id for add in adds])
        for add in adds:
            self._streams[add.request_id], self._num_sequences_of[add.request_id] = stream, add.params.n
        return stream

    def forget(self, request_id: str) -> None:
        """Aborts a request, if it is unfinished."""
        if self._remove(request_id) and not self.died.is_set():
            self._send(m.Abort(request_id))

    def fail_all(self, error: Exception) -> None:
        """Ends all unfinished requests with `error`."""
        for request_id, stream in list(self._streams.items()):
            stream.put(error)
            self.forget(request_id)

    async def close(self) -> int:
        """Ends the process, if there is one, and returns its exit code."""
        if self._process is not None and self.health in (Health.LOADING, Health.STALLED):
            self._process.kill()  # it would not look for messages
        self._fail(EngineError("the server is shutting down"))
        if self._transport is not None:
            self._transport.abort()
        return await asyncio.to_thread(self._wait, EXIT_SECONDS)

    def _wait(self, seconds: float) -> int:
        if self._process is None:
            return 0
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _send(self, message: m.ToEngine) -> None:
        self._write(m.frame(message))

    def _write(self, frames: bytes) -> None:
        assert self._transport is not None
        self._transport.write(frames)

    def _ping(self) -> None:
        """Asks an idle engine whether it is there, again and again: one that hangs would else be noticed by the next client."""
        self._pings = asyncio.get_running_loop().call_later(self._stall_timeout / PINGS, self._ping)
        if not self._streams and not self._pinged:
            self._heard, self._pinged = time.monotonic(), True
            self._send(m.Ping())

    def _receive(self, body: bytes) -> None:
        self._heard, self._pinged = time.monotonic(), False
        message = self._decoder.decode(body)
        match message:
            case m.Stepped():
                for delta in message.requests:
                    self._hand_over(delta.request_id, delta)
                self._on_stats(message.stats)
            case m.Refused():
                raised = (
                    RequestError(message.message, field=message.field, fix=message.fix)
                    if message.is_input_error
                    else EngineError(message.message)
                )
                self._hand_over(message.request_id, raised)
            case m.Ready() if self._ready is not None:
                self._ready.set_result(message)
                self._ping()
            case m.LoadFailed() if self._ready is not None:
                self._fail(ArtifactError(message.message) if message.is_input_error else EngineError(message.message))

    def _hand_over(self, request_id: str, item: m.RequestDelta | Exception) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:  # else it was aborted meanwhile
            stream.put(item)
            if isinstance(item, Exception) or item.finished:
                self._remove(request_id)

    def _remove(self, request_id: str) -> bool:
        self._num_sequences_of.pop(request_id, None)
        return self._streams.pop(request_id, None) is not None

    def _lost(self) -> None:
        """The engine's process has ended, or closed its end."""
        if not self.died.is_set():
            code = self._wait(LOST_SECONDS)
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            self._fail(EngineError(f"the engine's process ended {how}"))

    def _fail(self, error: InputError | EngineError) -> None:
        self.died.set()
        if self._pings is not None:
            self._pings.cancel()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # so that nobody need ask
        self.fail_all(error)


class _Receiver(asyncio.Protocol):
    def __init__(self, on_message: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._frames, self._on_message, self._on_lost = m.Frames(), on_message, on_lost

    def data_received(self, data: bytes) -> None:
        for body in self._frames.push(data):
            self._on_message(body)

    def connection_lost(self, _error: Exception | None) -> None:
        self._on_lost()
