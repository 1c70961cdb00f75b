"""The memory of this process, as far as the system tells: Linux in `/proc`, Windows by its own library, others by `getrusage`, which knows
the peak alone."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def memory_in_use() -> tuple[int, int] | None:
    """Bytes of physical memory that the process has, mapped files' among them, and the most that it ever had; None: nobody says."""
    for ask in (_linux, _windows, _others):
        found = ask()
        if found is not None:
            return found
    return None


def _linux() -> tuple[int, int] | None:
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text("ascii", "replace").splitlines() if ":" in line)
        return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except (OSError, KeyError, ValueError, IndexError):
        return None


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows' psapi.h."""

    _fields_ = [
        ("size", ctypes.c_uint32), ("faults", ctypes.c_uint32), ("peak", ctypes.c_size_t), ("working_set", ctypes.c_size_t),
        *((f"other_{i}", ctypes.c_size_t) for i in range(6)),
    ]  # fmt: skip


def _windows() -> tuple[int, int] | None:
    if sys.platform == "win32":
        kernel, counters = ctypes.WinDLL("kernel32"), _Counters(size=ctypes.sizeof(_Counters))
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel.GetCurrentProcess())
        if kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), ctypes.c_uint32(counters.size)):
            return counters.working_set, counters.peak
    return None


def _others() -> tuple[int, int] | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak
