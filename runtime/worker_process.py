"""A process that answers jobs, a line of JSON each, and is ended when a job takes too long.

What a model brings along may be hostile, such as its chat template or the patterns of its tokenizer: it is worked on in there, in
bounded time and memory. A process that dies or stops for another reason costs nobody an answer: the job goes to a new one.
"""

from __future__ import annotations

import json
import signal
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cupola.runtime.environment import interpreter
from cupola.runtime.errors import EngineError
from cupola.runtime.system.limits import warn_of_unlimited_memory
from cupola.runtime.system.processes import apart, processor_seconds

if TYPE_CHECKING:
    import subprocess  # slow to load, and most models never need a process

HOST = Path(__file__).with_name("worker_host.py")
MAX_LINE_BYTES = 64_000_000
MAX_TRIES = 2
EXIT_SECONDS = 5.0  # from the end of a process's output to its own
OWN_DOING = 0.05  # a job that was ended had at least this share of its time on a processor; one that was stopped had none
# What ends a process that reaches its limit of processor time, or native code that finds no memory, if it does not end by itself.
OWN_ENDS = {-getattr(signal, name) for name in ("SIGPROF", "SIGABRT") if hasattr(signal, name)}


class TooExpensiveError(Exception):
    """A job that took too much time or memory."""


class WorkerProcess:
    """Runs `script` with `arguments`, from the first job on, and again if it ended. Safe to call from several threads.

    The script has `MAX_MEMORY_BYTES` and `prepare(*arguments)`, which gives a function from a job to its answer, a JSON object. It runs in
    `worker_host.py`, which limits its memory, and its processor time in case that nobody is left to end it.
    """

    def __init__(self, script: Path, *arguments: str, max_seconds: float) -> None:
        self._command = [*interpreter(), str(HOST), str(script), str(max_seconds), *arguments]
        self._max_seconds, self._lock = max_seconds, threading.Lock()
        self._worker: subprocess.Popen[str] | None = None
        self._end: Callable[[], object] = _do_nothing

    def start(self) -> None:
        """Starts the process, if it does not run."""
        if self._worker is None or self._worker.poll() is not None:
            self.close()
            self._worker = _start(self._command)
            self._end = weakref.finalize(self, _end_worker, self._worker)  # at the latest when this object or the program ends

    def ask(self, job: object) -> dict[str, object]:
        """The answer to a job.

        Raises:
            TypeError, ValueError, RecursionError: if the job can't be written as JSON.
            TooExpensiveError: if it takes too much time or memory.
            EngineError: if the process ended for other reasons, twice.
        """
        line = json.dumps(job, allow_nan=False)
        with self._lock:
            for _ in range(MAX_TRIES):
                self.start()
                answer = self._try(line)
                if answer is not None:
                    return answer
        raise EngineError("a process that prepares requests was ended from outside, twice; try again")

    def close(self) -> None:
        """Ends the process. The next job starts a new one."""
        self._end()
        self._worker = None

    def _try(self, line: str) -> dict[str, object] | None:
        """The answer; None if the process is gone, and the job is not to blame."""
        worker, ended = self._worker, _Ended()
        assert worker is not None and worker.stdin is not None and worker.stdout is not None
        timer = threading.Timer(self._max_seconds, ended.end, [worker])
        start = processor_seconds(worker)
        timer.start()
        try:
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline(MAX_LINE_BYTES)
        except (BrokenPipeError, ValueError):
            answer = ""
        finally:
            timer.cancel()
        if answer.endswith("\n"):
            found: dict[str, object] = json.loads(answer)
            return found
        if not ended.is_late and not answer:
            import subprocess

            with suppress(subprocess.TimeoutExpired):  # what ends by itself is to say how
                worker.wait(EXIT_SECONDS)
        self.close()
        was_stopped = start is not None and ended.seconds is not None and ended.seconds - start < OWN_DOING * self._max_seconds
        is_late = ended.is_late and not was_stopped
        is_own_end = not ended.is_late and (worker.returncode >= 0 or worker.returncode in OWN_ENDS)
        if answer or is_late or is_own_end:
            raise TooExpensiveError(f"it took more than {self._max_seconds:g} s or too much memory")
        return None


class _Ended:
    """A process's end for a job's time, if it came to that, and the processor time that it had had by then, if the system says so."""

    is_late = False
    seconds: float | None = None

    def end(self, worker: subprocess.Popen[str]) -> None:
        """Ends it."""
        self.seconds, self.is_late = processor_seconds(worker), True
        worker.kill()


def _start(command: list[str]) -> subprocess.Popen[str]:
    import subprocess

    warn_of_unlimited_memory()
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8", **apart())


def _end_worker(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # what was never read need not be flushed
            pipe.close()
    worker.wait()


def _do_nothing() -> None:
    """There is no process yet."""
