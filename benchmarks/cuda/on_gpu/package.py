"""The parts of the package that fit this machine's GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

from cupola.runtime.device.capability import capability_fault, preference

HERE = Path(__file__).parent


def choose_folder() -> Path:
    """The folder of the nearest architecture that runs here. Ends the program if there is none."""
    folders = sorted(folder.parent for folder in HERE.glob("*/kernels"))
    faults = {folder: capability_fault(folder.name) for folder in folders}
    fitting = [folder for folder in folders if faults[folder] is None]
    if not fitting:
        raise SystemExit("nothing of this package runs here: " + "; ".join(f"{folder.name}: {fault}" for folder, fault in faults.items()))
    return max(fitting, key=lambda folder: preference(folder.name))


def gpu_name() -> str:
    """The GPU's name as NVIDIA's tool has it; "" where there is none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return (said.splitlines() or [""])[0].strip()
