"""The names of AMD's GPUs as targets, by their instruction sets."""

from __future__ import annotations

from ctypes.util import find_library
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cupola.targets.entry import EXECUTED, TargetEntry

if TYPE_CHECKING:
    from cupola.targets.base import Target

ARCHITECTURES = {
    "gfx942": "AMD CDNA 3: MI300X, MI300A, MI325X",
    "gfx1100": "AMD RDNA 3: RX 7900, PRO W7900, PRO W7800",
}


def _make(architecture: str) -> Target:
    from cupola.targets.rocm.build import rocm_target  # here, so that names are known without tvm, seconds of start-up

    return rocm_target(architecture)


def _has_driver() -> bool:
    return Path("/dev/kfd").exists() and (find_library("amdhip64") is not None or Path("/opt/rocm/lib/libamdhip64.so").exists())


TARGETS = tuple(
    TargetEntry(f"rocm:{name}", description, partial(_make, name), _has_driver, EXECUTED) for name, description in ARCHITECTURES.items()
)
