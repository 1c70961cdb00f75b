"""A description of the machine, and how fast it reads memory."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from venvs import BUILD, HERE

_TELLING_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "sve"),
)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, object]:
    """Processor, instruction sets that matter here, cores and system; "" or none where /proc does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    fields = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "processor": fields.get("model name", platform.processor()),
        "instruction_sets": [flag for flag in _TELLING_FLAGS if flag in flags],
        "cores": num_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def load_per_core() -> float:
    """How many processes want each core, over the last minute."""
    return os.getloadavg()[0] / num_cores()


def read_gigabytes_per_second(threads: int, megabytes: int) -> float | None:
    """How fast so many bytes are read again and again, by a small C program; None where there is no C compiler, or it fails."""
    compiler, program = shutil.which("cc"), BUILD / "read_bandwidth"
    if not compiler:
        return None
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = ["-O3", "-march=native", "-pthread"]
    built = subprocess.run([compiler, *flags, str(HERE / "read_bandwidth.c"), "-o", str(program)], capture_output=True, check=False)
    if built.returncode:
        return None
    done = subprocess.run([str(program), str(threads), str(megabytes)], capture_output=True, text=True, check=False)
    return None if done.returncode else float(done.stdout)
