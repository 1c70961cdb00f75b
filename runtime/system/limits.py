"""Limits of this process: on its memory, and on the processor time of a piece of work, at which it ends, in the midst of native code too.

On POSIX these are RLIMIT_AS and ITIMER_PROF. Windows limits memory by a job object. Without ITIMER_PROF a thread of C, faulthandler's,
ends the process; it goes by the clock, and so gives `PATIENCE` times as long. Imports nothing of cupola: `worker_host.py` loads it as a
file.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import logging
import signal
import sys
import time
from types import TracebackType
from typing import Self

APPLES = ("darwin", "ios")
PATIENCE = 3.0  # seconds on the clock for one of processor time: other programs run, too
_EXTENDED_LIMITS, _PROCESS_MEMORY = 9, 0x100  # JobObjectExtendedLimitInformation, JOB_OBJECT_LIMIT_PROCESS_MEMORY (Windows' winnt.h)


def limit_memory(num_bytes: int) -> bool:
    """Makes an allocation fail that would give this process more memory, as far as the limit that it was started under allows.

    Returns:
        False where the system has no such limit.

    Raises:
        OSError, ValueError: if the system has one, and it can't be set.
    """
    try:
        import resource
    except ImportError:
        return _limit_by_job(num_bytes)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    try:
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard), hard))
    except ValueError:
        if sys.platform not in APPLES:
            raise
        return False
    return True


def memory_is_limited() -> bool:
    """True where `limit_memory` bounds what a process takes. macOS refuses such a limit, or accepts it and goes on."""
    try:
        import resource  # noqa: F401  which has the limits
    except ImportError:
        return sys.platform == "win32"
    return sys.platform not in APPLES


@functools.cache
def warn_of_unlimited_memory() -> None:
    """Says, once, that this system lets what a stranger wrote take all memory until its time is up."""
    if not memory_is_limited():
        problem = "this system limits no process's memory: a hostile template, tokenizer, schema or grammar may take all for some seconds"
        logging.getLogger("cupola").warning(problem)


class Allowance:
    """Processor time for work that is done within this context, once or again and again. When it is used up, the process ends.

    Attributes:
        seconds: what is left.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._start = seconds, 0.0

    def add(self, seconds: float, *, most: float) -> None:
        """Adds to what is left, up to `most`."""
        self.seconds = min(self.seconds + seconds, most)

    if hasattr(signal, "setitimer"):

        def __enter__(self) -> Self:
            """Begins the work: SIGPROF ends a process that does not handle it."""
            signal.setitimer(signal.ITIMER_PROF, max(self.seconds, 1e-6))
            return self

        def _stop(self) -> None:
            self.seconds = signal.setitimer(signal.ITIMER_PROF, 0)[0]

    else:

        def __enter__(self) -> Self:
            """Begins the work."""
            self._start = time.process_time()
            faulthandler.dump_traceback_later(max(self.seconds, 1e-3) * PATIENCE, exit=True, file=sys.stderr)
            return self

        def _stop(self) -> None:
            faulthandler.cancel_dump_traceback_later()
            self.seconds -= time.process_time() - self._start

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the work, and notes what is left."""
        self._stop()


class _JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION of Windows' winnt.h."""

    _fields_ = [
        ("process_time", ctypes.c_int64), ("job_time", ctypes.c_int64), ("flags", ctypes.c_uint32), ("least_set", ctypes.c_size_t),
        ("most_set", ctypes.c_size_t), ("processes", ctypes.c_uint32), ("affinity", ctypes.c_size_t), ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32), ("io_counters", ctypes.c_uint64 * 6), ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t), ("peak_process_memory", ctypes.c_size_t), ("peak_job_memory", ctypes.c_size_t),
    ]  # fmt: skip


def _limit_by_job(num_bytes: int) -> bool:
    """Puts this process into a job of its own, for as long as it lives."""
    if sys.platform == "win32":
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.CreateJobObjectW.restype = kernel.GetCurrentProcess.restype = ctypes.c_void_p
        limits = _JobLimits(flags=_PROCESS_MEMORY, process_memory=num_bytes)
        job, size = ctypes.c_void_p(kernel.CreateJobObjectW(None, None)), ctypes.c_uint32(ctypes.sizeof(limits))
        is_set = job and kernel.SetInformationJobObject(job, ctypes.c_int(_EXTENDED_LIMITS), ctypes.byref(limits), size)
        if not is_set or not kernel.AssignProcessToJobObject(job, ctypes.c_void_p(kernel.GetCurrentProcess())):
            raise ctypes.WinError(ctypes.get_last_error())
        return True
    return False
