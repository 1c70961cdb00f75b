"""The engine's process: takes requests off a socket, steps, and sends what is new. Run as a module by `engine_client.py`.

It ends when the socket does. Signals are the server's business: a SIGTERM that reaches the whole group must not cut off what the
server still lets finish.
"""

from __future__ import annotations

import contextlib
import gc
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Iterator

import msgspec

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.engine.engine import Engine
from cupola.runtime.engine.outputs import TokenLogprobs
from cupola.runtime.engine.request import Request
from cupola.runtime.environment import debug_level
from cupola.runtime.errors import ArtifactError, CupolaError, EngineError, InputError, one_line
from cupola.runtime.load_engine import load_engine
from cupola.runtime.server import messages as m
from cupola.runtime.system.channel import join, new_selector
from cupola.runtime.text.tokenizer import load_tokenizer

RECEIVE_BYTES = 1 << 20
SIGN_OF_LIFE = 1.0  # seconds, in which an engine that waits says so
MAX_FAILED_STEPS = 2  # in a row; a step may fail for want of memory and go well the next time


class Channel:
    """The engine's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._frames = connection, m.Frames()
        self._selector = new_selector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._decoder = msgspec.msgpack.Decoder(m.ToEngine)

    def receive(self, seconds: float | None) -> Iterator[m.ToEngine]:
        """The messages that have come, or do within so many seconds; with None, at least one. Raises EOFError once the server is gone."""
        while self._selector.select(seconds):
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise EOFError
            for frame in self._frames.push(data):
                seconds = 0
                yield self._decoder.decode(frame)

    def send(self, message: m.ToServer) -> None:
        """Sends a message. Raises EOFError once the server is gone."""
        try:
            self._socket.sendall(m.frame(message))
        except OSError:
            raise EOFError from None


class EngineLoop:
    """Steps the engine as long as it has work, and talks with the server in between."""

    def __init__(self, engine: Engine, channel: Channel) -> None:
        self._engine, self._channel = engine, channel
        self._sent: dict[str, Sent] = {}
        self._num_failures = 0

    def run(self) -> None:
        """Goes on until the server is gone, which raises EOFError."""
        while True:
            for message in self._channel.receive(self._pause()):
                match message:
                    case m.Add():
                        self._add(message)
                    case m.Abort():
                        self._abort(message.request_id)
                    case m.Ping():
                        self._channel.send(m.Stepped([], self._engine.stats()))
            if self._engine.has_unfinished_requests():
                deltas = [] if self._engine.delay() else self._step()  # what came may be a prompt, which does not wait
                self._channel.send(m.Stepped(deltas, self._engine.stats()))

    def _pause(self) -> float | None:
        """Seconds that nothing is to be done for, by the engine's pace, until a message comes; None without end. The server hears of it."""
        return min(self._engine.delay(), SIGN_OF_LIFE) if self._engine.has_unfinished_requests() else None

    def _add(self, add: m.Add) -> None:
        try:
            request = self._engine.add_request(
                add.request_id,
                add.prompt_token_ids,
                add.params,
                priority=add.priority,
                cache_salt=add.cache_salt,
                compiled_grammar=add.grammar,
            )
            self._sent[add.request_id] = Sent(request)
        except InputError as error:
            self._channel.send(m.Refused(add.request_id, error.message, True, error.field, error.fix))
        except Exception as error:  # noqa: BLE001  one request that can't be taken is no reason to give up the others
            report(error)
            self._channel.send(m.Refused(add.request_id, f"the engine failed: {type(error).__name__}: {error}", is_input_error=False))

    def _abort(self, request_id: str) -> None:
        self._sent.pop(request_id, None)
        self._engine.abort(request_id)
        self._channel.send(m.Stepped([], self._engine.stats()))

    def _step(self) -> list[m.RequestDelta]:
        try:
            changed = self._engine.step()
        except EngineError as error:
            report(error)
            self._num_failures += 1
            if self._num_failures == MAX_FAILED_STEPS:
                self._num_failures = 0
                self._give_up(str(error))
            return []
        self._num_failures = 0
        deltas = [self._sent[request.spec.request_id].delta() for request in changed]
        for delta in deltas:
            if delta.finished:
                del self._sent[delta.request_id]
        return deltas

    def _give_up(self, reason: str) -> None:
        """Refuses all unfinished requests, since the fault may be any one's, and frees their blocks."""
        for request_id in list(self._sent):
            self._engine.abort(request_id)
            del self._sent[request_id]
            self._channel.send(m.Refused(request_id, f"the engine failed: {reason}", is_input_error=False))


class Sent:
    """How much of a request was sent."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._num_tokens = [0] * len(request.sequences)
        self._num_characters = [0] * len(request.sequences)
        self._finished = [False] * len(request.sequences)
        self._prompt_was_sent = False

    def delta(self) -> m.RequestDelta:
        """The request's output since the last call."""
        request = self._request
        delta = m.RequestDelta(
            request_id=request.spec.request_id,
            completions=[completion for i in range(len(request.sequences)) if (completion := self._completion(i)) is not None],
            finished=request.finished,
            num_cached_tokens=request.num_cached_tokens or 0,
            queue_seconds=(request.first_scheduled_time or request.arrival_time) - request.arrival_time,
            prompt_logprobs=self._prompt_logprobs(),
            num_draft_tokens=request.draft_counts.num_tokens,
            num_accepted_tokens=request.draft_counts.num_accepted,
        )
        self._prompt_was_sent = True
        return delta

    def _prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        wanted = self._request.spec.params.prompt_logprobs is not None and not self._prompt_was_sent
        return self._request.prompt_logprobs if wanted else None

    def _completion(self, i: int) -> m.CompletionDelta | None:
        sequence = self._request.sequences[i]
        first, num_output = self._num_tokens[i], sequence.num_output_tokens
        if self._finished[i] or (first == num_output and sequence.finish_reason is None):
            return None
        text = sequence.text[self._num_characters[i] :]
        self._num_tokens[i] = num_output
        self._num_characters[i] += len(text)
        self._finished[i] = sequence.finish_reason is not None
        return m.CompletionDelta(
            index=i,
            text=text,
            token_ids=sequence.token_ids[len(sequence.token_ids) - (num_output - first) :],
            logprobs=None if self._request.spec.params.logprobs is None else sequence.logprobs[first:num_output],
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            error=sequence.error,
        )


def report(error: BaseException) -> None:
    """Says on standard error what went wrong; with CUPOLA_DEBUG, where."""
    with contextlib.suppress(OSError):  # a full disk under the log is no reason to end
        print(one_line(f"engine: {type(error).__name__}: {error}"), file=sys.stderr, flush=True)
        if debug_level():
            traceback.print_exception(error)


def load(start: m.Start) -> Engine:
    """The engine that `start` asks for. Raises CupolaError, for another artifact than the server's too: they share one tokenizer."""
    artifact = Artifact.open(start.artifact)
    if artifact.sha256 != start.sha256:
        raise ArtifactError("was replaced by another one since the server opened it", file=artifact.path, fix="start the server again")
    return load_engine(
        artifact,
        start.config,
        load_tokenizer(artifact, is_bounded=True),
        kv_memory=start.kv_memory,
        memory_budget=start.memory_budget,
        gpu_memory_utilization=start.gpu_memory_utilization,
        swap_memory=start.swap_memory,
        swap_folder=start.swap_folder,
        cache_folder=start.cache_folder,
        cache_size=start.cache_size,
        device=start.device,
        warms_up=True,
    )


def serve(channel: Channel) -> None:
    """Loads what the first message says and serves until the server is gone, which raises EOFError."""
    start = next(channel.receive(None))
    assert isinstance(start, m.Start)
    try:
        engine = load(start)
    except (CupolaError, OSError, MemoryError) as error:
        channel.send(m.LoadFailed(str(error) or "there is not enough memory", isinstance(error, InputError)))
        return
    for note in engine.notes:
        print(one_line(f"engine: {note}"), file=sys.stderr, flush=True)
    channel.send(m.Ready(engine.validator.max_length, sum(engine.executor.num_blocks), engine.config.max_num_seqs))
    try:
        EngineLoop(engine, channel).run()
    finally:
        engine.close()


def main() -> None:
    """`python -m cupola.runtime.server.engine_process CHANNEL`: serves whoever holds the other end (`runtime/system/channel.py`)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = join(sys.argv[1])
    try:
        serve(Channel(connection))
    except EOFError:
        return
    finally:
        gc.freeze()  # the process ends: collecting what its libraries leave behind takes longer than all else


if __name__ == "__main__":
    main()
