"""The worker protocol: JSON lines on stdin and stdout. Runs in every peer's environment, so it needs the standard library alone.

    driver                                              worker
                                                        {"version": "0.3.36", "about": "what it tells of itself"}
    {"do": "load", "model": …, "threads": 2, …}         {"seconds": 0.4, "resident_bytes": 150000000}
    {"do": "run", "prompts": [[…]], "num_tokens": 129}  {"first": 0.1, "total": 1.3}

An error is answered with {"error": "…"}; the end of stdin ends the worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

# Every engine gets room for as many tokens of K/V as the largest workload needs: 16 streams of 64 + 128, or one of 2,048 + 129.
KV_TOKENS = 4096
MAX_STREAMS = 16
CHUNK = 512  # prompt tokens that are computed at once


@dataclass(frozen=True)
class Times:
    """Seconds from the start of a request until all streams have their first token, and until all have their last."""

    first: float
    total: float


class Engine(Protocol):
    """The interface that a worker's file implements; its imports are done when the file is imported."""

    version: str
    about: str

    def load(self, model: str, threads: int, setting: str) -> None:
        """Makes the model ready; `setting` is the engine's own, from the table of engines."""

    def run(self, prompts: list[list[int]], num_tokens: int) -> Times:
        """Completes all prompts at once, greedily, with exactly `num_tokens` tokens each, whatever they are."""


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system does not say it in /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), None)


def answer(engine: Engine, request: dict[str, object]) -> dict[str, object]:
    """Does what one line asks for."""
    if request["do"] == "load":
        start = time.perf_counter()
        engine.load(request["model"], request["threads"], request["setting"])  # type: ignore[arg-type]
        engine.run([request["prompt"]], 1)  # type: ignore[list-item]
        return {"seconds": time.perf_counter() - start, "resident_bytes": resident_bytes()}
    return asdict(engine.run(request["prompts"], request["num_tokens"]))  # type: ignore[arg-type]


def serve(engine: Engine) -> None:
    """Answers the driver until it closes stdin. What libraries print on stdout goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, object]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    reply({"version": engine.version, "about": engine.about})
    for line in sys.stdin:
        try:
            reply(answer(engine, json.loads(line)))
        except Exception as error:  # noqa: BLE001 - whatever a peer throws is a line of the table
            reply({"error": f"{type(error).__name__}: {error}"})
