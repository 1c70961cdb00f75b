"""Runs each case in a process of its own, forked from one that has imported everything, within a time limit."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from case import Result

LIMIT_SECONDS = 600  # far above what a case takes where the machine has other work to do
_LOG_CHARACTERS = 300

Case = Callable[[str, Path], Result]


def run_cases(
    names: Sequence[str], jobs: int, case: Case, limit_seconds: float = LIMIT_SECONDS, poll_seconds: float = 0.02
) -> Iterator[Result]:
    """The results of `case(name, empty folder)`, `jobs` at once, as they come."""
    waiting, running = list(reversed(names)), list[_Worker]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Worker(waiting.pop(), case))
            done = [worker for worker in running if worker.has_ended() or worker.age() > limit_seconds]
            running = [worker for worker in running if worker not in done]
            yield from (worker.result(limit_seconds) for worker in done)
            time.sleep(0 if done else poll_seconds)
    finally:
        for worker in running:
            worker.kill()


class _Worker:
    """A forked process, its folder and its result, which comes as a file."""

    def __init__(self, name: str, case: Case) -> None:
        self.name, self.start, self.status = name, time.monotonic(), None
        self.folder = tempfile.TemporaryDirectory(prefix="cupola-sweep-")
        path = Path(self.folder.name)
        self.log, self.answer = path / "log", path / "result.json"
        self.pid = os.fork()
        if self.pid == 0:
            self._run(case, path / "case")

    def _run(self, case: Case, folder: Path) -> None:
        """The child: never returns."""
        code = 1
        try:
            os.setsid()  # compilers that it starts end with it
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            folder.mkdir()
            text = json.dumps(asdict(case(self.name, folder)))
            self.answer.with_suffix(".new").write_text(text, encoding="utf-8")
            self.answer.with_suffix(".new").rename(self.answer)
            code = 0
        finally:
            os._exit(code)

    def age(self) -> float:
        return time.monotonic() - self.start

    def has_ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def kill(self) -> None:
        if not self.has_ended():
            os.killpg(self.pid, signal.SIGKILL)
            _, self.status = os.waitpid(self.pid, 0)
        self.folder.cleanup()

    def result(self, limit_seconds: float) -> Result:
        """The result that it wrote, or how it ended without writing; ends the process and removes its folder."""
        if not self.has_ended():
            found = Result(self.name, "failed", f"takes more than {limit_seconds:g} seconds", seconds=limit_seconds)
        elif self.answer.exists():
            found = Result(**json.loads(self.answer.read_text(encoding="utf-8")))
        else:
            log = " ".join(self.log.read_text(encoding="utf-8", errors="replace").split()) if self.log.exists() else ""
            how = f"its process ended with {os.waitstatus_to_exitcode(self.status or 0)}"
            found = Result(self.name, "failed", f"{how}: {log[-_LOG_CHARACTERS:]}", seconds=round(self.age(), 1))
        self.kill()
        return found
