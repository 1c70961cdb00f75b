"""Other processes of ours: started out of a terminal's reach, and the processor time that they have had."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess  # slow to load, and most models never need a process


def apart() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` that keep Ctrl-C in our terminal from a process: it is for us alone."""
    if hasattr(os, "setsid"):
        return {"start_new_session": True}
    import subprocess

    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def processor_seconds(process: subprocess.Popen[Any]) -> float | None:
    """Processor time that a process has had; None where the system does not say, or the process is gone."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _seconds_of_windows(process)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _seconds_of_windows(process: subprocess.Popen[Any]) -> float | None:
    if sys.platform == "win32":
        times = (ctypes.c_uint64 * 4)()  # start, end, in the kernel, in the program: in 100 ns
        places = [ctypes.byref(times, 8 * i) for i in range(4)]
        if ctypes.WinDLL("kernel32").GetProcessTimes(ctypes.c_void_p(int(process._handle)), *places):
            return (times[2] + times[3]) * 1e-7
    return None
