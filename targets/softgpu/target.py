"""The targets `softgpu…`, `softrocm:…` and `softmetal`: kernels for CUDA, AMD's GPUs and Metal, run on this CPU thread by thread, to test
them. Very slow."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cupola.targets.entry import EXECUTED, TargetEntry

if TYPE_CHECKING:
    from cupola.targets.base import Target


ARCHITECTURES = {"softgpu": "sm_80", "softgpu:sm_90a": "sm_90a"}  # of NVIDIA's, by the target's name
AMD_ARCHITECTURES = {"softrocm:gfx942": "gfx942", "softrocm:gfx1100": "gfx1100"}


def _make(name: str) -> Target:
    from cupola.targets.softgpu.build import softgpu_target  # here, so that names are known without tvm, seconds of start-up

    return softgpu_target(name, ARCHITECTURES[name])


def _make_rocm(name: str) -> Target:
    from cupola.targets.softgpu.build_rocm import softrocm_target

    return softrocm_target(name, AMD_ARCHITECTURES[name])


def _make_metal() -> Target:
    from cupola.targets.softgpu.build_metal import softmetal_target

    return softmetal_target()


def _has_compiler() -> bool:
    return find_spec("ziglang") is not None


TARGETS = (
    *(
        TargetEntry(name, f"CUDA's kernels for {architecture} on this CPU, to test them", partial(_make, name), _has_compiler, EXECUTED)
        for name, architecture in ARCHITECTURES.items()
    ),
    *(
        TargetEntry(
            name, f"ROCm's kernels for {architecture} on this CPU, to test them", partial(_make_rocm, name), _has_compiler, EXECUTED
        )
        for name, architecture in AMD_ARCHITECTURES.items()
    ),
    TargetEntry("softmetal", "Metal's kernels on this CPU, to test them", _make_metal, _has_compiler, EXECUTED),
)
