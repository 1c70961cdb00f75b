"""The CPU and what it can run: the one place that reads it, for the compiler's targets as for whoever loads an artifact."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cupola.runtime import cpu_features

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# Systems by what Python calls them, and by words of LLVM's triples; in this order, since Android's are Linux's too.
_PLATFORMS = {"darwin": "macos", "win32": "windows", "cygwin": "windows"}
_TRIPLES = {"android": "android", "linux": "linux", "darwin": "macos", "macos": "macos", "apple": "macos", "win": "windows"}
_ON_REQUEST = "amx"  # how features begin whose registers Linux keeps from a process until it asks for them
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), in https://docs.kernel.org/arch/x86/xstate.html
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def here() -> str:
    """This machine's architecture as LLVM's triples have it, such as x86_64 or aarch64."""
    return architecture(platform.machine())


def system_here() -> str:
    """This machine's operating system: linux, macos, windows, android, or what Python calls it."""
    return "android" if hasattr(sys, "getandroidapilevel") else _PLATFORMS.get(sys.platform, sys.platform)


def system_of(triple: str) -> str | None:
    """The operating system that a triple of LLVM's names, in the same words; None for another one."""
    _, _, rest = triple.partition("-")
    return next((system for word, system in _TRIPLES.items() if word in rest), None)


def missing_features(features: Sequence[str]) -> list[str]:
    """Those of `features`, in Linux's words, that this process can't use; none where the system does not list any.

    What Linux grants on request only is asked for here, and so is the process's from then on.
    """
    flags = cpu_flags()
    missing = [name for name in features if flags is not None and name not in flags]
    on_request = [name for name in features if name.startswith(_ON_REQUEST)]
    return on_request if on_request and not missing and not _request_tiles() else missing


def cpu_flags() -> frozenset[str] | None:
    """The CPU's features; None where nobody can be asked."""
    return cpu_features.cpu_flags(system_here(), here())


@functools.cache
def _request_tiles() -> bool:
    """Asks Linux for the tile registers of AMX, for all threads of this process; whether it has them then."""
    if not sys.platform.startswith("linux") or here() != "x86_64":
        return False
    syscall = ctypes.CDLL(None).syscall
    syscall.restype, arguments = ctypes.c_long, (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return bool(syscall(*map(ctypes.c_long, arguments)) == 0)


def usable_cores(system: Path = Path("/")) -> int:
    """Cores that this process may keep busy: those it may run on, and no more than the whole ones that control groups leave it.

    `system` is the folder whose `proc` and `sys` are read. A program with more threads than its quota is stopped, all threads at once, for
    the rest of each period.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(system))]))


def _quotas(system: Path) -> Iterator[float]:
    """Processor seconds a second that this process's control group and those above it may use, where they are limited.

    Version 2 has them in `cpu.max`, version 1 in two files (https://docs.kernel.org/admin-guide/cgroup-v2.html and
    https://docs.kernel.org/scheduler/sched-bwc.html). In a container the group's path may be that of the host, and only the root be there.
    """
    for line in _lines(system / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = [controllers, "cpu"] if controllers else ["", "unified"]
        for root in (system / "sys/fs/cgroup" / name for name in names):
            group = root / path.lstrip("/")
            for folder in (group, *(above for above in group.parents if above.is_relative_to(root))):
                yield from _quota(folder)


def _quota(group: Path) -> Iterator[float]:
    limits = [" ".join(_lines(group / "cpu.max")), " ".join(n for f in ("quota", "period") for n in _lines(group / f"cpu.cfs_{f}_us"))]
    for quota, period in (words for limit in limits if len(words := limit.split()) == 2):
        if quota.isdecimal() and period.isdecimal() and int(period):  # "max" and -1 are no limit
            yield int(quota) / int(period)


def _lines(file: Path) -> list[str]:
    """None where the system has no such file, or keeps it from us."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def trim_heap() -> None:
    """Gives freed memory back to the system where the C library, glibc, keeps it: all that lies below memory in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def architecture(name: str) -> str:
    """An architecture's name as LLVM has it, whatever the system calls it."""
    return _ARCHITECTURES.get(name.lower(), name.lower())
