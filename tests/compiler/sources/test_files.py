"""Hashes of files that are read while others work."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cupola.compiler.sources.files import hash_of, sha256_of


def test_a_hash_is_there_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"more")
    one, both = hash_of([tmp_path / "a"]), hash_of(tmp_path / name for name in "ab")
    assert one() == one() == hashlib.sha256(b"content").hexdigest()
    assert both() == sha256_of([tmp_path / "a", tmp_path / "b"])


def test_a_file_that_cannot_be_read_fails_who_asks(tmp_path: Path) -> None:
    asked = hash_of([tmp_path / "none"])
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            asked()
