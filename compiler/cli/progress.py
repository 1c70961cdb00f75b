"""Progress for people: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from cupola.compiler.progress import Advance, Progress, TimedProgress, amount
from cupola.runtime.environment import debug_level


class BarProgress:
    """One bar below the other, each with its time, and with its size and the time left if those are known; else it pulses."""

    def __init__(self, console: Console, refreshes_per_second: float = 10) -> None:
        self._console, self._refreshes_per_second = console, refreshes_per_second

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """As in `cupola.compiler.progress.Progress`."""
        columns = [SpinnerColumn(finished_text="✓"), TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn()]
        if total and unit:
            columns += [TextColumn("{task.fields[amount]}"), TimeRemainingColumn()]
        with Bars(*columns, console=self._console, refresh_per_second=self._refreshes_per_second) as bars:
            task = bars.add_task(name, total=total, amount="")
            done = 0

            def advance(units: int) -> None:
                nonlocal done
                done += units
                bars.update(task, advance=units, amount=amount(done, total or done, unit))

            yield advance
            whole = total or 1
            bars.update(task, total=whole, completed=whole, amount=amount(whole, whole, unit))


def console_progress(refreshes_per_second: float = 10) -> Progress:
    """Bars if standard error is a terminal and no debug output would tear them, else a line a stage."""
    console = Console(stderr=True)
    return BarProgress(console, refreshes_per_second) if console.is_terminal and not debug_level() else TimedProgress()
