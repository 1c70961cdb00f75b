"""How a compile tells its caller where it is: it opens one stage after the other and counts what it has done."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from cupola.runtime.environment import debug_level

Advance = Callable[[int], None]
SECONDS_BETWEEN_LINES = 2.0


class Progress(Protocol):
    """The interface to which a compile reports its progress."""

    def stage(self, name: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        """Opens a stage, such as "tracing"; call what it yields with the units done since the last call, from any thread.

        Args:
            name: shown to people.
            total: the units in all, or None if that is not known.
            unit: of what they are counted in: "B" of bytes, which are shown in MB or GB, or the plural of a word.
        """
        ...


class SilentProgress:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """As in `Progress`."""
        yield lambda units: None


class TimedProgress:
    """A line on standard error for every stage, with the seconds it took; every two seconds one that says how far it is.

    cupola: Packing weights 1.2 of 4.7 GB, 9 s left
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._lock = clock, threading.Lock()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """As in `Progress`."""
        start = said = self._clock()
        done = 0

        def advance(units: int) -> None:
            nonlocal done, said
            with self._lock:
                done += units
                now = self._clock()
                if total and done < total and now - said >= SECONDS_BETWEEN_LINES:
                    said = now
                    left = (now - start) / done * (total - done) if done else None
                    _say(f"{name} {amount(done, total, unit)}{'' if left is None else f', {left:.0f} s left'}")

        yield advance
        size = f", {amount(total, total, unit)}" if total and unit else ""
        _say(f"{name} {self._clock() - start:.2f} s{size}")


def amount(done: int, total: int, unit: str) -> str:
    """`done` of `total` units, for people: "1.2 of 4.7 GB"; of all of them only how many they are."""
    scale, digits, name = 1.0, 0, unit
    if unit == "B":
        scale, digits, name = (1e9, 1, "GB") if total >= 1e9 else (1e6, 0, "MB")
    whole = f"{total / scale:.{digits}f} {name}".rstrip()
    return whole if done == total else f"{done / scale:.{digits}f} of {whole}"


def _say(line: str) -> None:
    print(f"cupola: {line}", file=sys.stderr, flush=True)


def default_progress() -> Progress:
    """Silence, or timed lines from the first step of the debugging ladder on."""
    return TimedProgress() if debug_level() else SilentProgress()
