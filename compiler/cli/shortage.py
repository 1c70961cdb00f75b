"""Says in one line what the machine had too little of, for errors that come from Python, the loader and native code."""

from __future__ import annotations

import errno
import re

try:
    import resource  # at once, while there is memory to load it
except ImportError:  # as on Windows
    HAS_LIMITS = False
else:
    HAS_LIMITS = True

# As the dynamic loader, the system and C++ say it. A static TLS block is the loader's own, and has another cause.
_NO_MEMORY = re.compile("failed to map segment from shared object|cannot allocate memory(?! in static tls)|bad_alloc")
_NO_THREAD = "can't start new thread"


def shortage(error: BaseException) -> str | None:
    """Names the resource that ran out, and the fix; None if the error is about something else."""
    text = str(error).lower()
    if isinstance(error, RuntimeError) and _NO_THREAD in text:
        problem, fix = "the system lets this process start no more threads", "raise `ulimit -u`"
    elif isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _NO_MEMORY.search(text):
        problem, fix = "there is not enough memory", ""
    else:
        return None
    limit = _address_space_limit()
    if limit is not None:
        fix = f"this process may use {limit >> 20} MiB of address space; raise `ulimit -v`"
    return f"{problem} ({fix})" if fix else problem


def _address_space_limit() -> int | None:
    """Bytes of address space that this process may use; None if there is no limit."""
    if not HAS_LIMITS:
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft
