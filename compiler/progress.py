"""How a compile tells its caller where it is: it opens one stage after the other and counts what it has done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from cupola.runtime.environment import debug_level

Advance = Callable[[int], None]


class Progress(Protocol):
    """The interface to which a compile reports its progress."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Opens a stage, such as "tracing"; call what it yields with the units done since the last call.

        Args:
            name: shown to people.
            total: the units in all, or None if that is not known.
        """
        ...


class SilentProgress:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """As in `Progress`."""
        yield lambda units: None


class TimedProgress:
    """A line on standard error for every stage, with the seconds it took."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """As in `Progress`."""
        start = time.perf_counter()
        yield lambda units: None
        print(f"cupola: {name} {time.perf_counter() - start:.2f} s", file=sys.stderr, flush=True)


def default_progress() -> Progress:
    """Silence, or timed lines from the first step of the debugging ladder on."""
    return TimedProgress() if debug_level() else SilentProgress()
