"""The names of NVIDIA's GPUs as targets, by their compute capability."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cupola.targets.entry import EXECUTED, TargetEntry

if TYPE_CHECKING:
    from cupola.targets.base import Target

ARCHITECTURES = {
    "sm_80": "NVIDIA Ampere: A100, A30; what is compiled for it runs on all later ones too",
    "sm_86": "NVIDIA Ampere: RTX 30, A10, A40",
    "sm_89": "NVIDIA Ada: RTX 40, L4, L40",
    "sm_90a": "NVIDIA Hopper: H100, H200, GH200",
}


def _make(architecture: str) -> Target:
    from cupola.targets.cuda.build import cuda_target  # here, so that names are known without tvm, seconds of start-up

    return cuda_target(architecture)


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


TARGETS = tuple(
    TargetEntry(f"cuda:{name}", description, partial(_make, name), _has_driver, EXECUTED) for name, description in ARCHITECTURES.items()
)
