"""Times a compile stage by stage: seconds on the clock and of the processor, and the most memory beside mapped files.

    python -m benchmarks.large_models llama.gguf --quant w4a8 --out folder       (models.py beside it makes the file)

A line a stage, then one for all. What processes of the compiler's own use, such as linkers, counts with the stage that waits for them.
Memory is RssAnon of /proc, asked for twenty times a second: pages of mapped files, which the system may drop, do not count.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ANONYMOUS = re.compile(r"RssAnon:\s+(\d+) kB")


class Stages:
    """Progress that measures."""

    def __init__(self) -> None:
        self.peak, self._most = 0, 0
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """As in `cupola.compiler.progress.Progress`."""
        begin, used, self._most = time.perf_counter(), _processor_seconds(), 0
        yield lambda units: None
        self._line(name, time.perf_counter() - begin, _processor_seconds() - used, self._most, total if unit == "B" else None)

    def summary(self, seconds: float) -> None:
        """The last line."""
        self._line("All", seconds, _processor_seconds(), self.peak, None)

    def _line(self, name: str, seconds: float, used: float, most: int, num_bytes: int | None) -> None:
        speed = f", {num_bytes / 1e6 / seconds:.0f} MB/s" if num_bytes else ""
        print(f"{name:<24}{seconds:7.2f} s {used:7.2f} processor seconds {most / 1e6:7.0f} MB{speed}", flush=True)

    def _watch(self) -> None:
        while True:
            found = _ANONYMOUS.search(Path("/proc/self/status").read_text(encoding="utf-8"))
            self._most = max(self._most, 1024 * int(found[1]) if found else 0)
            self.peak = max(self.peak, self._most)
            time.sleep(0.05)


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Compiles what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--out", required=True)
    parser.add_argument("--quant", default="w4a8")
    parser.add_argument("--target", default="cpu")
    arguments = parser.parse_args()
    begin, stages = time.perf_counter(), Stages()
    with stages.stage("Importing packages"):
        import cupola
        import cupola.compiler.driver
    cupola.compile(arguments.source, target=arguments.target, quant=arguments.quant, out=arguments.out, progress=stages)
    stages.summary(time.perf_counter() - begin)


if __name__ == "__main__":
    main()
