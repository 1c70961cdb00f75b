"""How many files and connections this process may have open."""

from __future__ import annotations

import sys


def allow_open_files(wanted: int) -> int:
    """Raises the soft limit to `wanted`, as far as the hard one allows. Returns what may be open now, `wanted` where nothing limits it."""
    if sys.platform == "win32":
        return wanted
    import resource  # which Windows has not

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
