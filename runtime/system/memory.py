"""The memory of this process and of the machine, as far as the system tells: Linux in `/proc`, Windows by its own library, others by
`getrusage`, which knows the peak alone, and `sysconf`."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_STATUS, _STATM = Path("/proc/self/status"), Path("/proc/self/statm")


def memory_in_use() -> tuple[int, int] | None:
    """Bytes of physical memory that the process has, mapped files' among them, and the most that it ever had; None: nobody says."""
    for ask in (_linux, _windows, _others):
        found = ask()
        if found is not None:
            return found
    return None


def address_space() -> int | None:
    """Bytes of memory, physical or not, that this process has asked for, as limits count them; None: nobody says."""
    try:
        return int(_STATM.read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        counters = _counters()
        return None if counters is None else int(counters.commit_charge)


def machine_memory() -> int | None:
    """Bytes of physical memory of the machine; None: nobody says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, other systems not these names
        return _machine_of_windows()


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
        *((f"quota_{i}", ctypes.c_size_t) for i in range(4)), ("commit_charge", ctypes.c_size_t), ("peak_commit_charge", ctypes.c_size_t),
    ]  # fmt: skip


class _Status(ctypes.Structure):
    """MEMORYSTATUSEX of Windows' sysinfoapi.h."""

    _fields_ = [("size", ctypes.c_uint32), ("load", ctypes.c_uint32), ("total", ctypes.c_uint64), ("others", ctypes.c_uint64 * 6)]


def _windows() -> tuple[int, int] | None:
    counters = _counters()
    return None if counters is None else (counters.working_set, counters.peak)


def _counters() -> _Counters | None:
    if sys.platform == "win32":
        kernel, counters = ctypes.WinDLL("kernel32"), _Counters(size=ctypes.sizeof(_Counters))
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel.GetCurrentProcess())
        if kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), ctypes.c_uint32(counters.size)):
            return counters
    return None


def _machine_of_windows() -> int | None:
    if sys.platform == "win32":
        status = _Status(size=ctypes.sizeof(_Status))
        if ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
            return int(status.total)
    return None


def _others() -> tuple[int, int] | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak
