"""Processes that each hold one grammar (`grammar_worker.py`), and how to talk to them without ever waiting."""

from __future__ import annotations

import json
import struct
import time
import weakref
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cupola.runtime.artifact.verified import identify
from cupola.runtime.system.channel import Connection, wait_for
from cupola.runtime.system.warm_process import WarmProcess

HEAD = struct.Struct("<I")
Row: TypeAlias = "tuple[str, Sequence[int], Sequence[int]]"  # a sequence's name, its new tokens, and those that are drafted after them
CHUNK_BYTES = 1 << 20
LOOK_SECONDS = 1.0  # between two looks whether a process is there that has yet to connect


@dataclass(frozen=True)
class Allowed:
    """The tokens allowed after those of a sequence.

    `state` is "open", "done" (nothing but the end may come) or "stuck" (not even that); `mask` has a bit for each token,
    the lowest of each byte first. `following` is what is allowed after the token `drafted`, if that was asked.
    """

    state: str
    mask: bytes
    drafted: int | None = None
    following: Allowed | None = None

    def after(self, token_id: int) -> Allowed | None:
        """The tokens allowed after a further one; None if nobody has asked."""
        return self.following if token_id == self.drafted else None


class GrammarProcess:
    """One grammar, compiled and matched in a process of its own. No method waits.

    Attributes:
        source: the grammar.
        num_bytes: about how much memory it takes, once it is compiled.
        failure: why there will be no more answers, if that is so.
        ended: whether that is because the process ended without a word: it used up its time or memory, or somebody killed it.
    """

    def __init__(self, source: bytes, connection: Connection) -> None:
        self.source = source
        self.num_bytes: int | None = None
        self.failure: str | None = None
        self.ended = False
        self._connection = connection
        self._unsent, self._received = bytearray(), bytearray()
        self._questions: list[list[Row]] = []  # the rows of each that has no answer yet
        self._forgotten: list[str] = []
        weakref.finalize(self, connection.close)
        connection.setblocking(False)
        self._send(source)

    @property
    def compiling(self) -> bool:
        """True until the process has said whether the grammar is sound."""
        return self.num_bytes is None and self.failure is None

    @property
    def idle(self) -> bool:
        """True if the grammar is sound and no answer is outstanding."""
        return self.num_bytes is not None and self.failure is None and not self._questions

    @property
    def sending(self) -> bool:
        """True if `poll` has something left to send."""
        return bool(self._unsent)

    def ask(self, rows: Sequence[Row]) -> None:
        """Asks what may come after further tokens of sequences, and after each drafted one behind them."""
        self._questions.append([(name, (), draft) for name, _, draft in rows])
        self._send(json.dumps({"rows": rows, "forget": self._forgotten}).encode())
        self._forgotten = []

    def forget(self, name: str) -> None:
        """Lets the process drop a sequence, the next time that it is asked something."""
        self._forgotten.append(name)

    def poll(self) -> dict[str, Allowed]:
        """The answers that have come since the last time, by the sequence's name."""
        answers: dict[str, Allowed] = {}
        self._flush()
        ended = self._receive()
        while (frame := self._next_frame()) is not None:
            answers |= self._understand(frame)
        if ended and self.failure is None:
            self.failure, self.ended = "it takes too much time or memory", True
        return answers

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self.failure = self.failure or "it was closed"

    def fileno(self) -> int:
        """The socket, to wait for; -1 once it is closed."""
        return self._connection.fileno()

    def _send(self, content: bytes) -> None:
        self._unsent += HEAD.pack(len(content)) + content
        self._flush()

    def _flush(self) -> None:
        with suppress(OSError):  # full: the rest goes later; ended: reading tells
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]

    def _receive(self) -> bool:
        """Takes in what has come. Whether the process has ended."""
        try:
            while chunk := self._connection.recv(CHUNK_BYTES):
                self._received += chunk
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def _next_frame(self) -> bytes | None:
        if len(self._received) < HEAD.size:
            return None
        end = HEAD.size + HEAD.unpack_from(self._received)[0]
        if len(self._received) < end:
            return None
        frame = bytes(self._received[HEAD.size : end])
        del self._received[:end]
        return frame

    def _understand(self, frame: bytes) -> dict[str, Allowed]:
        if self.compiling:
            verdict = json.loads(frame)
            self.num_bytes, self.failure = verdict.get("num_bytes"), verdict.get("error")
            return {}
        header, _, masks = frame.partition(b"\n")
        rows, states = self._questions.pop(0), json.loads(header)
        width, end, answers = len(masks) // max(sum(map(len, states)), 1), len(masks), dict[str, Allowed]()
        for (name, _, draft), states_of_row in zip(reversed(rows), reversed(states), strict=True):
            allowed = None
            for i in range(len(states_of_row) - 1, -1, -1):
                allowed = Allowed(states_of_row[i], masks[end - width : end], *(() if allowed is None else (draft[i], allowed)))
                end -= width
            assert allowed is not None
            answers[name] = allowed
        return answers


def wait(processes: Collection[GrammarProcess], seconds: float) -> None:
    """Waits until one of the processes has something to say, or can take more of what it is told, at most so long."""
    wait_for(processes, seconds, [process for process in processes if process.sending])


class GrammarServer:
    """Makes grammar processes, by forking one that has read the vocabulary where the system can. For several threads.

    Args:
        file: the tokenizer.json.
        vocab_size: the width of the logits.
        stop_token_ids: what may end an output.
        max_seconds: processor time for compiling one grammar.
    """

    def __init__(self, file: Path, vocab_size: int, stop_token_ids: Sequence[int], max_seconds: float) -> None:
        arguments = (str(file), identify(file), str(vocab_size), json.dumps(list(stop_token_ids)), str(max_seconds))
        self._warm = WarmProcess(f"{__package__}.grammar_worker", arguments)

    def open(self, source: bytes) -> GrammarProcess:
        """A process that begins to compile the grammar."""
        return GrammarProcess(source, self._warm.open())

    def close(self) -> None:
        """Ends what is kept ready for further grammars; their processes end when they are closed."""
        self._warm.close()


def wait_until_compiled(process: GrammarProcess, seconds: float) -> None:
    """Waits until the grammar is compiled or has failed, at most so long."""
    deadline = time.monotonic() + seconds
    process.poll()
    while process.compiling and (left := deadline - time.monotonic()) > 0:
        wait([process], min(left, LOOK_SECONDS))
        process.poll()
