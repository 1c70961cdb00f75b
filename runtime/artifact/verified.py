"""Remembers which folders' files were found to have the hashes that they should have, so that they are read for that once and not at
every start: gigabytes of weights would take seconds.

    <cache>/verified/<hash of the folder's path>      a hash of what the system says of each file, and of the hashes wanted

What the system says of a file (its inode, size, and the times of its last change) changes with every write, copy and replacement.
Removing the folder `verified` from the cache makes everything be read again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cupola.runtime.environment import cache_folder

SETTLED_NS = 2_000_000_000  # a younger file may change again without a change of its times, which some systems keep in seconds


def verify_once(folder: Path, files: Mapping[Path, str], verify: Callable[[], None]) -> None:
    """Calls `verify` unless it passed before and no file of `folder` changed since.

    Args:
        files: what must have which SHA-256.
        verify: raises if a file has another one.
    """
    note, state = _note_of(folder), _state_of(files)
    known = None
    with suppress(OSError, ValueError):  # nothing noted, or nothing that can be read: verify again
        known = note.read_text(encoding="ascii")
    if state is not None and state == known:
        return
    verify()
    if state is not None:
        with suppress(OSError):  # a cache that can't be written to costs time, not the answer
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(state, encoding="ascii")


def identify(file: Path) -> str:
    """An identity that a file taking its place later does not share; "" if there is no file."""
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _note_of(folder: Path) -> Path:
    return cache_folder() / "verified" / hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()


def _state_of(files: Mapping[Path, str]) -> str | None:
    """A digest of the state of all files; None if one changed too lately, or can't be looked at."""
    latest, found = time.time_ns() - SETTLED_NS, []
    for file, sha256 in files.items():
        try:
            status = file.stat()
        except OSError:
            return None
        if max(status.st_mtime_ns, status.st_ctime_ns) > latest:
            return None
        found.append([file.name, sha256, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
