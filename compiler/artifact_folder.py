"""The folder that becomes an artifact: a temporary one, which gets its name when everything is there.

.NAME.xxxxxxxx.tmp   being written; locked as long as its process lives, so the next compile removes what a dead one left, or goes on
                     from there if that had finished shards of weights (`finished.py`)
.NAME.xxxxxxxx.old   the artifact that NAME was, for the moment of the exchange
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from cupola.compiler.finished import RECORD, SHARD_NAME
from cupola.runtime.artifact.manifest import MANIFEST
from cupola.runtime.errors import OptionError, SourceError

if sys.platform != "win32":  # where nothing is locked, and what was left behind stays
    import fcntl

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|old)")


@contextlib.contextmanager
def artifact_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` if the block ends well, and vanishes if it does not: unless it is interrupted, and
    has finished shards. Then it stays, and the next compile of `out` gets it, with nothing else in it.

    Raises:
        OptionError: something that is not an artifact stands at `out`, or it cannot be written.
    """
    out = _check_free(out)
    temporary = None
    try:
        temporary, lock = _adopt(out) or _make_locked(out)
        with lock:
            yield temporary
            (temporary / RECORD).unlink(missing_ok=True)
            _replace(out, temporary)
    except (KeyboardInterrupt, SystemExit):
        if temporary is not None and (temporary / RECORD).is_file():
            temporary = None
        raise
    except OSError as error:
        raise _explain(error, out, temporary) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_free(out: Path) -> Path:
    """`out` without links. Raises OptionError if it cannot be, or should not become, an artifact."""
    try:
        real = out.resolve()
        is_current = real == Path.cwd()
        free = not real.exists() or (real / MANIFEST).is_file() or (real.is_dir() and not any(real.iterdir()))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a ring of links; ValueError: a NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"cannot be used: {reason}", file=repr(str(out))[:200], field="out", fix="choose another folder") from None
    if not free or is_current:
        problem = "is the current folder" if free else "exists and is not an artifact"
        raise OptionError(problem, file=out, field="out", fix="choose another folder")
    return real


def _explain(error: OSError, out: Path, temporary: Path | None) -> OptionError | SourceError:
    """The disk is full, most likely; but a file may also have failed that is read and not written."""
    reason = error.strerror or str(error)
    if temporary is not None and error.filename is not None and out.parent not in Path(os.fsdecode(error.filename)).parents:
        return SourceError(f"cannot be used: {reason}", file=os.fsdecode(error.filename), fix="check that it is there and can be read")
    return OptionError(f"cannot be written: {reason}", file=out, field="out", fix="check the disk and its permissions")


def _replace(out: Path, new: Path) -> None:
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    if not out.exists():
        new.rename(out)
        return
    out.rename(old)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    for left in (old, *_siblings(out, "old")):
        shutil.rmtree(left, ignore_errors=True)


def _make_locked(out: Path) -> tuple[Path, contextlib.AbstractContextManager[object]]:
    while True:
        temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
        temporary.mkdir(parents=True)
        # Another compile may take the folder for stale before it is locked, and remove it.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = _lock(temporary, or_go_without=True)
            if temporary.is_dir():
                return temporary, lock


def _adopt(out: Path) -> tuple[Path, contextlib.AbstractContextManager[object]] | None:
    """The folder of an interrupted compile, locked, with its finished shards; others that nobody has locked are removed."""
    found = None
    for folder in _siblings(out, "tmp") if sys.platform != "win32" else []:
        with contextlib.suppress(OSError):  # its process lives
            lock = _lock(folder)
            if found is None and (folder / RECORD).is_file():
                _keep_shards(folder)
                found = folder, lock
                continue
            with lock:
                shutil.rmtree(folder, ignore_errors=True)
    return found


def _keep_shards(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != RECORD and not SHARD_NAME.fullmatch(path.name):
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes what interrupted compiles left in `folder`, whatever they were to make there."""
    for path in folder.iterdir() if sys.platform != "win32" else []:
        if _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError), _lock(path):  # OSError: its process lives
                shutil.rmtree(path, ignore_errors=True)


def _siblings(out: Path, suffix: str) -> list[Path]:
    """The folders that an earlier compile of `out` made."""
    start, end = f".{out.name}.", f".{suffix}"
    found = list(out.parent.iterdir()) if out.parent.is_dir() else []
    return [p for p in found if p.name.startswith(start) and p.name.endswith(end) and len(p.name) == len(start) + 8 + len(end)]


def _lock(folder: Path, *, or_go_without: bool = False) -> contextlib.AbstractContextManager[object]:
    """Locks `folder` until the context ends or the process dies.

    Raises:
        BlockingIOError: another process has it.
        OSError: the file system has no locks, unless one may `or_go_without`: there nothing is ever taken for stale.
    """
    lock = contextlib.ExitStack()
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        lock.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError) or not or_go_without:
                lock.close()
                raise
    return lock
