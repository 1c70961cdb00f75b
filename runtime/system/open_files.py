"""How many files and connections this process may have open."""

from __future__ import annotations


def allow_open_files(wanted: int) -> int:
    """Raises the soft limit to `wanted`, as far as the hard one allows. Returns what may be open now, `wanted` where nothing limits it."""
    try:
        import resource
    except ImportError:  # as on Windows, which limits files of C's library alone
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
