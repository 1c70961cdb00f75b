"""Room on a disk, and who may write to a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

_ZEROS = bytes(1 << 20)


def reserve(file: IO[bytes], start: int, num_bytes: int) -> None:
    """Takes so much of a disk for a part of a file which nothing was written to yet. Raises OSError if there is not so much."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), start, num_bytes)
        return
    file.seek(start)  # as on Windows and macOS: what is written has its place
    for first in range(0, num_bytes, len(_ZEROS)):
        file.write(_ZEROS[: num_bytes - first])
    file.flush()


def others_may_write(folder: Path) -> bool | None:
    """True if a folder is another user's, or others may write to it; None where modes of files don't say so. Raises OSError."""
    status = folder.stat()
    if not hasattr(os, "geteuid"):
        return None
    return status.st_uid != os.geteuid() or bool(status.st_mode & 0o022)
