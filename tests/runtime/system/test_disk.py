"""Room on a disk is really taken, and who may write to a folder is known where modes say it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cupola.runtime.system import private_copy
from cupola.runtime.system.disk import others_may_write, reserve
from cupola.runtime.system.private_copy import PREFIX, remove_abandoned
from tests.systems import needs


@pytest.mark.parametrize("by_writing", [False, True])
def test_room_is_taken(by_writing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_writing:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"before")
        file.truncate(10 << 20)
        reserve(file, 4096, 3_000_001)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 3_000_001
        assert os.fstat(file.fileno()).st_size == 10 << 20
        file.seek(0)
        assert file.read() == b"before".ljust(10 << 20, b"\0")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here that is always full")
def test_no_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError):
        reserve(file, 0, 100)


@needs("modes of files")
def test_others_may_write_where_the_mode_says_so(tmp_path: Path) -> None:
    for mode, found in ((0o700, False), (0o755, False), (0o775, True), (0o707, True)):
        tmp_path.chmod(mode)
        assert others_may_write(tmp_path) is found


def test_nobody_knows_who_may_write_where_there_are_no_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "geteuid", raising=False)
    assert others_may_write(tmp_path) is None


def test_copies_that_were_left_behind_are_removed(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in (f"{PREFIX}old", f"{PREFIX}new", "cupola-other"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "lib.so").write_bytes(b"code")
    for folder in (old, other):
        os.utime(folder, (0, 0))
    remove_abandoned(tmp_path)
    assert set(tmp_path.iterdir()) == {other, new}


def test_a_copy_in_a_folder_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    paths = [private_copy.load_copy(b"code", lambda path: (path, Path(path).read_bytes())) for _ in range(2)]
    assert [content for _, content in paths] == [b"code"] * 2 and paths[0] != paths[1]
    assert not any(Path(path).parent.exists() for path, _ in paths)
