"""Hashes are computed once, and again as soon as a file may have changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cupola.runtime.artifact import verified
from cupola.runtime.artifact.verified import verify_once


class Files:
    """A folder of two files, and a count of how often they were verified."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.wanted, self.count = folder, {folder / "a": "1", folder / "b": "2"}, 0
        for file in self.wanted:
            file.write_text("12345")

    def is_read(self) -> bool:
        before = self.count
        verify_once(self.folder, self.wanted, self._verify)
        return self.count > before

    def _verify(self) -> None:
        self.count += 1


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "cache"))
    now = time.time_ns
    monkeypatch.setattr(verified.time, "time_ns", lambda: now() + 60 * 10**9)  # all files are old
    return Files(tmp_path / "files")


def test_what_did_not_change_is_read_once(files: Files) -> None:
    assert [files.is_read() for _ in range(3)] == [True, False, False]
    assert Files(files.folder.with_name("others")).is_read()


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("12345")
    other.rename(file)


def rewrite(file: Path) -> None:
    """Other contents under the same size and time of change."""
    times = file.stat()
    file.write_text("54321")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [replace, rewrite, lambda file: os.truncate(file, 4), os.utime])
def test_what_changed_is_read_again(files: Files, change: Callable[[Path], object]) -> None:
    assert files.is_read()
    time.sleep(0.05)  # the system's clock for files moves in steps
    change(files.folder / "b")
    assert [files.is_read() for _ in range(2)] == [True, False]


def test_other_hashes_are_wanted(files: Files) -> None:
    assert files.is_read()
    files.wanted[files.folder / "a"] = "3"
    assert [files.is_read() for _ in range(2)] == [True, False]


def test_what_changed_just_now_is_read_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified.time, "time_ns", lambda: (files.folder / "a").stat().st_mtime_ns + 10**9)
    assert files.is_read() and files.is_read()


def test_what_fails_is_not_remembered(files: Files) -> None:
    def fail() -> None:
        raise OSError("no")

    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            verify_once(files.folder, files.wanted, fail)


def test_a_cache_that_is_none_costs_time_only(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPOLA_CACHE", str(tmp_path / "files" / "a" / "cache"))
    assert files.is_read() and files.is_read()
