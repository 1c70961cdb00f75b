"""Another processor, played by qemu with a Python of its own: `make emulators` installs both."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ARM_PYTHON, ARM_PACKAGES = Path("build/arm64/root"), Path("build/arm64/site")


def emulator(architecture: str, processor: str, folder: Path) -> list[str]:
    """The command before a program's, whose libraries are in `folder`; without an emulator the test is skipped."""
    found = next((path for name in ("", "-static") if (path := shutil.which(f"qemu-{architecture}{name}"))), None)
    if found is None or not folder.is_dir():
        pytest.skip(f"there is no qemu for {architecture}, or nothing for it in {folder}; `make emulators` installs both")
    return [found, "-cpu", processor, "-L", str(folder)]


def run_arm_python(processor: str, text: str, *arguments: str | Path, path: Path | None = None) -> str:
    """The output of a program for Python on such an Arm processor, which has numpy and what else cupola needs, and perhaps `path`."""
    folders = os.pathsep.join(str(folder.resolve()) for folder in (ARM_PACKAGES, *([path] if path else [])))
    python = [*emulator("aarch64", processor, ARM_PYTHON), "-E", f"PYTHONPATH={folders}", str(ARM_PYTHON / "usr/bin/python3.11")]
    done = subprocess.run([*python, "-c", text, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
