"""Takes the measurements: in every round, each entrant in turn does each workload once.

An entrant's worker is started afresh in every round and ended before the next one starts. So no other engine's threads poll while one
is timed, memory holds one engine at a time, and loading is measured as often as the rest; it costs a few seconds a turn. Before each timed
run the same workload is run untimed, with at most four tokens out: some engines build kernels for shapes that they meet for the first time.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contest import ENTRANTS, FIRST_PROMPT, WORKLOADS, Entrant, Workload
from protocol import Times
from venvs import BUILD, HERE, Progress, SetupError, last_line, make_file, make_venv, python_of

_LIMIT_SECONDS = 600.0  # for one answer


class WorkerError(Exception):
    """A worker could not do what it was asked for; the text says why."""


class RefusalError(WorkerError):
    """A worker answered with an error, and lives on."""


class Worker:
    """A process of an entrant's environment that answers requests."""

    def __init__(self, command: Sequence[str], log: Path, variables: tuple[tuple[str, str], ...] = ()) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | dict(variables)
            )
        self.hello: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        self.hello = self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """Sends a request and returns its answer. Raises RefusalError, or WorkerError if the process is gone."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._end()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        timer = threading.Timer(_LIMIT_SECONDS, self._process.kill)
        start = time.monotonic()
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line and time.monotonic() - start > _LIMIT_SECONDS:
            raise WorkerError(f"gave no answer in {_LIMIT_SECONDS:.0f} s")
        if not line:
            raise WorkerError(self._end())
        answer = json.loads(line)
        if "error" in answer:
            raise RefusalError(answer["error"])
        return answer

    def _end(self) -> str:
        code = self._process.wait()
        return f"ended by signal {-code}" if code < 0 else f"ended with code {code}: {last_line(self._log)}"


@dataclass
class Record:
    """All that was seen of an entrant; rates are tokens a second, one a round."""

    version: str = ""
    tells: str = ""
    error: str = ""
    load_seconds: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The runs to make; names are keys of the tables in contest.py."""

    engines: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    threads: int
    reuse: bool = False


def set_up(plan: Plan, progress: Progress) -> tuple[dict[str, Path], dict[str, Record]]:
    """The model file of each engine that could be set up, and a record of each engine, which holds the reason where it could not."""
    paths: dict[str, Path] = {}
    records = {name: Record() for name in plan.engines}
    for name in plan.engines:
        try:
            make_venv(ENTRANTS[name].venv, progress)
            paths[name] = make_file(ENTRANTS[name].file, progress, reuse=plan.reuse)
        except SetupError as error:
            records[name].error = str(error)
            progress(f"{name} can't be set up: {error}")
    return paths, records


def worker_command(entrant: Entrant) -> list[str]:
    """The command that starts an entrant's worker."""
    return [python_of(entrant.venv), str(HERE / entrant.worker)]


def take_turns(plan: Plan, paths: Mapping[str, Path], records: dict[str, Record], progress: Progress) -> None:
    """Fills the records. An engine that fails sits out the rest, with its reason kept."""
    for number in range(plan.rounds):
        for name, path in paths.items():
            record = records[name]
            if record.error:
                continue
            entrant = ENTRANTS[name]
            try:
                with Worker(worker_command(entrant), BUILD / "logs" / f"{name}-worker.log", entrant.variables) as worker:
                    load = {"do": "load", "model": str(path), "threads": plan.threads, "setting": entrant.setting, "prompt": FIRST_PROMPT}
                    take_turn(worker, load, plan.workloads, record)
            except (WorkerError, OSError) as error:
                record.error = str(error)
            done = record.error or ", ".join(f"{work} {rates[-1]:.0f}" for work, rates in record.rates.items())
            progress(f"round {number + 1} of {plan.rounds}, {name}: {done}")


def take_turn(worker: Worker, load: Mapping[str, object], workloads: Sequence[str], record: Record) -> None:
    """Loads, then runs each workload that has not failed before. Raises WorkerError if the worker is gone."""
    record.version, record.tells = worker.hello["version"], worker.hello["about"]
    answer = worker.ask(load)
    record.load_seconds.append(answer["seconds"])
    if answer["resident_bytes"]:
        record.resident_bytes.append(answer["resident_bytes"])
    for name in workloads:
        if name in record.errors:
            continue
        try:
            record.rates.setdefault(name, []).append(timed_rate(worker, WORKLOADS[name]))
        except RefusalError as error:
            record.errors[name] = str(error)
            record.rates.pop(name)


def timed_rate(worker: Worker, work: Workload) -> float:
    """Tokens a second of one run, after an untimed one. Raises as `Worker.ask`."""
    request = {"do": "run", "prompts": work.prompts()}
    worker.ask(request | {"num_tokens": min(4, work.num_tokens)})
    return work.rate(work, Times(**worker.ask(request | {"num_tokens": work.num_tokens})))
