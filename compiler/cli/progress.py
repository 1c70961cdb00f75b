"""Progress for people: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cupola.compiler.progress import Advance, TimedProgress
from cupola.compiler.progress import Progress as CompileProgress
from cupola.runtime.environment import debug_level


class BarProgress:
    """One bar below the other, each with its time; a stage of unknown length pulses."""

    def __init__(self, console: Console, refreshes_per_second: float = 10) -> None:
        self._console, self._refreshes_per_second = console, refreshes_per_second

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """As in `cupola.compiler.progress.Progress`."""
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, refresh_per_second=self._refreshes_per_second) as bars:
            task = bars.add_task(name, total=total)
            yield lambda units: bars.advance(task, units)
            whole = total or 1
            bars.update(task, total=whole, completed=whole)


def console_progress(refreshes_per_second: float = 10) -> CompileProgress:
    """Bars if standard error is a terminal and no debug output would tear them, else a line a stage."""
    console = Console(stderr=True)
    return BarProgress(console, refreshes_per_second) if console.is_terminal and not debug_level() else TimedProgress()
