"""The fast cores of machines whose cores differ, such as Arm's big.LITTLE and Intel's hybrid processors, as Linux and Android say.

`runtime/embed/fast_cores.c` does the same for programs in C. Elsewhere, and where nothing tells cores apart, all are alike.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from cupola.runtime.environment import num_threads

ALIKE = 0.8  # cores are alike if the slowest has this share of the fastest's speed: turbo clocks of equal cores differ by less


def choose_cores(wanted: int | None = None, system: Path = Path("/")) -> tuple[int, tuple[int, ...]]:
    """The number of threads for kernels, and the cores that they should run on; no cores are any.

    Args:
        wanted: threads; None are as many as CUPOLA_NUM_THREADS says, else as there are fast cores that this process may keep busy.
        system: the folder whose `sys` is read.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    speeds = core_speeds(allowed, system)
    if not speeds:
        return wanted or num_threads(), ()
    middle = (max(speeds.values()) + min(speeds.values())) / 2
    num_fast = sum(speed >= middle for speed in speeds.values())
    count = wanted or num_threads(most=num_fast)
    return count, fastest_cores(speeds, max(count, num_fast))


def fastest_cores(speeds: Mapping[int, int], count: int) -> tuple[int, ...]:
    """So many of the fastest cores, and those that are as fast as the last of them; none if that is all."""
    least = sorted(speeds.values(), reverse=True)[min(count, len(speeds)) - 1]
    cores = tuple(sorted(core for core, speed in speeds.items() if speed >= least))
    return () if len(cores) == len(speeds) else cores


def core_speeds(allowed: Collection[int], system: Path = Path("/")) -> dict[int, int]:
    """A measure of each core's speed, by the first source that tells the allowed ones apart; empty where none does."""
    for speeds in _sources(allowed, system / "sys/devices"):
        if len(speeds) == len(allowed) > 0 and min(speeds.values()) < ALIKE * max(speeds.values()):
            return speeds
    return {}


def _sources(allowed: Collection[int], devices: Path) -> Iterator[dict[int, int]]:
    """Arm's capacities; Intel's list of performance cores; the highest clocks.

    https://docs.kernel.org/scheduler/sched-capacity.html, Documentation/ABI/testing/sysfs-devices-system-cpu and
    sysfs-bus-event_source-devices of Linux. Clocks come last: of equal cores some may be clocked higher.
    """
    yield _numbers(allowed, devices / "system/cpu", "cpu_capacity")
    performance = _cores_of_list(_text(devices / "cpu_core/cpus"))
    yield {core: 2 if core in performance else 1 for core in allowed}
    yield _numbers(allowed, devices / "system/cpu", "cpufreq/cpuinfo_max_freq")


def _numbers(allowed: Collection[int], cpus: Path, name: str) -> dict[int, int]:
    texts = {core: _text(cpus / f"cpu{core}" / name) for core in allowed}
    return {core: int(text) for core, text in texts.items() if text.isdecimal()}


def _cores_of_list(text: str) -> set[int]:
    """The numbers of a list of the kernel's, such as 0-3,8."""
    ranges = (part.partition("-") for part in text.split(","))
    return {
        core
        for first, _, last in ranges
        if first.isdecimal() and (last or first).isdecimal()
        for core in range(int(first), int(last or first) + 1)
    }


def _text(file: Path) -> str:
    """Empty where the system has no such file, or keeps it from us."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
