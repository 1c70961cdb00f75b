"""The folder that becomes an artifact: whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cupola.compiler import artifact_folder as module
from cupola.compiler.artifact_folder import artifact_folder
from cupola.runtime.errors import OptionError, SourceError

HOLD = """
import pathlib, sys, time
from cupola.compiler.artifact_folder import artifact_folder
with artifact_folder(pathlib.Path(sys.argv[1])) as work:
    (work / "half").write_text("half")
    print("in", flush=True)
    time.sleep(60)
"""
FILL = """
import pathlib, resource, sys
import numpy as np
from cupola.compiler.artifact_folder import artifact_folder
from cupola.compiler.artifact_writer import write_weights
from cupola.compiler.weights import PackedWeight
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.errors import OptionError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
weight = PackedWeight(TensorSpec("w", "float32", (1000, 1000)), lambda: np.zeros((1000, 1000), np.float32))
try:
    with artifact_folder(pathlib.Path(sys.argv[1])) as work:
        write_weights(work, [weight], lambda num_bytes: None)
except OptionError as error:
    print(error)
"""


def write(out: Path, text: str = "new") -> None:
    with artifact_folder(out) as work:
        (work / "manifest.json").write_text(text)


def hold(out: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing `out`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_whole_artifact_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "a", "old")
    write(tmp_path / "deep" / "a")
    assert names(tmp_path / "deep") == ["a"]
    assert (tmp_path / "deep" / "a" / "manifest.json").read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, SourceError("bad")])
def test_what_ends_early_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "a", "old")
    with pytest.raises(type(error) if isinstance(error, BaseException) else error):
        with artifact_folder(tmp_path / "a") as work:
            (work / "manifest.json").write_text("half")
            raise error
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "manifest.json").read_text() == "old"


def test_what_a_killed_compile_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process = hold(tmp_path / "a")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = names(tmp_path)
    assert left.startswith(".a.") and left.endswith(".tmp")
    (tmp_path / ".a.b.01234567.tmp").mkdir()  # of another name
    (tmp_path / ".a.mine.tmp").mkdir()  # nobody's
    with pytest.raises(SourceError), artifact_folder(tmp_path / "a"):  # even one that fails cleans up
        raise SourceError("bad")
    assert names(tmp_path) == [".a.b.01234567.tmp", ".a.mine.tmp"]


def test_a_compile_that_still_runs_keeps_its_folder(tmp_path: Path) -> None:
    process = hold(tmp_path / "a")
    try:
        write(tmp_path / "a")
        assert len(names(tmp_path)) == 2
    finally:
        process.kill()
        process.communicate()
    write(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'a'}: out: cannot be written: File too large (check the disk and its permissions)\n"
    assert names(tmp_path) == []


def test_a_failing_exchange_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", "old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OptionError, match="out: cannot be written: No space left"):
        write(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "manifest.json").read_text() == "old"


def test_a_file_that_is_read_is_not_blamed_on_out(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="/no/such/file: cannot be used: No such file"), artifact_folder(tmp_path / "b" / "a"):
        Path("/no/such/file").read_text()


def test_out_must_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = names(tmp_path)
    for out in ("../file", "../full", "../ring", "..", ".", "/", "", "../file/a", "/proc/a", "x" * 300, "a\0b"):
        with pytest.raises(OptionError) as caught:
            write(Path(out))
        assert caught.value.field == "out" and caught.value.fix and "\n" not in str(caught.value), out
    assert names(tmp_path) == before
    write(Path("../full/new"))  # beside other things, and in an empty folder
    monkeypatch.chdir(tmp_path)
    write(Path("empty"))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a" / "manifest.json").read_text() == "new"
    assert names(tmp_path) == ["a", "link"]


def test_without_locks_nothing_is_taken_for_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".a.01234567.tmp").mkdir()

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", fail)
    write(tmp_path / "a")
    assert names(tmp_path) == [".a.01234567.tmp", "a"]
