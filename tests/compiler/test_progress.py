"""The kinds of progress that a compile may report to: silent, lines with times, bars."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cupola.compiler.cli.progress import BarProgress, console_progress
from cupola.compiler.progress import Progress, SilentProgress, TimedProgress, default_progress


@pytest.mark.parametrize("progress", [SilentProgress(), TimedProgress(), BarProgress(Console(file=io.StringIO(), force_terminal=True))])
def test_every_progress_takes_stages_of_known_and_unknown_length(progress: Progress) -> None:
    for total in (None, 0, 3):
        with progress.stage("packing weights", total) as advance:
            for _ in range(total or 1):
                advance(1)


def test_timed_stages_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with TimedProgress().stage("tracing"):
        pass
    line = capsys.readouterr().err
    assert line.startswith("cupola: tracing ")
    assert line.endswith(" s\n")


def test_a_stage_that_fails_lets_the_error_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), BarProgress(Console(stderr=True)).stage("tracing"):
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), TimedProgress().stage("tracing"):
        raise ValueError("no")
    assert "cupola: tracing" not in capsys.readouterr().err


def test_bars_name_their_stage() -> None:
    shown = io.StringIO()
    with BarProgress(Console(file=shown, force_terminal=True)).stage("packing weights", 2) as advance:
        advance(2)
    assert "packing weights" in shown.getvalue()


def test_the_debugging_ladder_begins_with_stages_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(default_progress(), SilentProgress)
    monkeypatch.setenv("CUPOLA_DEBUG", "1")
    assert isinstance(default_progress(), TimedProgress)
    assert isinstance(console_progress(), TimedProgress)
