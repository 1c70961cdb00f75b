"""Loads a compiled library: the very bytes that the manifest hashes, under a name that the process never used.

A dynamic loader looks for a library by its path's name, then by its inode, and answers with the one that it has: a second
artifact at the path of the first, or written over its files, would run the first one's code. So the library is read, checked
and loaded from a private copy, in memory where Linux has that. A copy also stays whole when the file is overwritten.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cupola.runtime.errors import ArtifactError

_loaded: dict[str, Any] = {}  # by SHA-256; kept for ever: threads may be in their code, and functions refer to it
_lock = threading.Lock()


def load_library(file: Path, sha256: str, load: Callable[[str], Any]) -> Any:
    """What `load` makes of a private copy of `file`; the same again for a library of the same content.

    Args:
        file: the library.
        sha256: of its content, in hexadecimal, as the manifest states it.
        load: takes the copy's path, which is gone afterwards.

    Raises:
        ArtifactError: if the file can't be read, or has other content.
        Exception: what `load` raises.
    """
    content = _read(file, sha256)
    with _lock:
        if sha256 not in _loaded:
            _loaded[sha256] = _load_copy(content, load)
        return _loaded[sha256]


def _read(file: Path, sha256: str) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ArtifactError(f"can't be read: {error.strerror}", file=file, fix="copy or compile it again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(
            "does not match its SHA-256 in the manifest", file=file, fix="it was replaced or changed; open the artifact again"
        )
    return content


def _load_copy(content: bytes, load: Callable[[str], Any]) -> Any:
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
        yield f"/proc/self/fd/{'./' * len(_loaded)}{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def _in_temporary_folder(content: bytes) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="cupola-", ignore_cleanup_errors=True) as folder:  # Windows keeps what is loaded
        path = Path(folder) / "lib.so"
        path.write_bytes(content)
        yield str(path)
