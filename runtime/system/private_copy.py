"""Private copies of files, by names that this process never used: in memory where Linux has that, else in a temporary folder."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PREFIX = "cupola-library-"
ABANDONED = 3600.0  # seconds after which a folder that nobody uses is what a process left behind
_counter = itertools.count()


def load_copy(content: bytes, load: Callable[[str], Any]) -> Any:
    """The result of `load`, which takes the path of a file with this content, gone afterwards. Raises what `load` raises, or OSError."""
    in_memory = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
    failure: Exception | None = None
    for copied in (_in_memory, _in_temporary_folder) if in_memory else (_in_temporary_folder,):
        try:
            with copied(content) as path:
                return load(path)
        except Exception as error:  # noqa: BLE001  a system may forbid to run code from one of these places
            failure = failure or error
    assert failure is not None
    raise failure


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("lib.so")
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(content)
        # The descriptor's number comes again with the next library; steps that lead nowhere make the name another.
        yield f"/proc/self/fd/{'./' * next(_counter)}{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def _in_temporary_folder(content: bytes) -> Iterator[str]:
    import tempfile  # here, since it is seldom wanted

    remove_abandoned(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:  # Windows keeps what is loaded
        path = Path(folder) / "lib.so"
        path.write_bytes(content)
        yield str(path)


def remove_abandoned(parent: Path) -> None:
    """Removes folders of processes that have ended, where the system kept them; one that is in use it keeps on."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is gone, or another user's
            if folder.stat().st_mtime < time.time() - ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
