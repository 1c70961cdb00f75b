"""The kinds of progress that a compile may report to: silent, lines with times, bars."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cupola.compiler.cli.progress import BarProgress, console_progress
from cupola.compiler.progress import Progress, SilentProgress, TimedProgress, amount, default_progress


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


def test_a_line_every_two_seconds_says_how_far_a_stage_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with TimedProgress(lambda: now[0]).stage("packing weights", 4_000_000_000, "B") as advance:
        for _ in range(4):
            now[0] += 1.5
            advance(1_000_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["cupola: packing weights 2.0 of 4.0 GB, 3 s left", "cupola: packing weights 6.00 s, 4.0 GB"]


def test_stages_without_a_size_and_short_ones_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    for total in (None, 2):
        with TimedProgress(lambda: now[0]).stage("tracing", total) as advance:
            now[0] += 1.9
            advance(1)
    assert capsys.readouterr().err == "cupola: tracing 1.90 s\n" * 2


def test_amounts_are_for_people() -> None:
    assert amount(1_234_000_000, 4_700_000_000, "B") == "1.2 of 4.7 GB"
    assert (amount(5, 987_000_000, "B"), amount(987_000_000, 987_000_000, "B")) == ("0 of 987 MB", "987 MB")
    assert (amount(3, 7, "layers"), amount(3, 7, "")) == ("3 of 7 layers", "3 of 7")


def test_bars_with_a_size_say_how_much_is_done() -> None:
    shown = io.StringIO()
    with BarProgress(Console(file=shown, force_terminal=True, width=150)).stage("packing weights", 3_000_000, "B") as advance:
        advance(3_000_000)
    assert "3 MB" in shown.getvalue()


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
