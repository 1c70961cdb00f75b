"""The runtimes and the limits of targets with CUDA's kernels, whoever compiles them."""

from __future__ import annotations

from pathlib import Path

import tvm

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.targets.base import Abilities, KernelRule, Target
from cupola.targets.gpu.emit import Gpu, for_gpu
from cupola.targets.gpu.rules import HOPPER_RULES, MATRIX_RULES, OPTIONAL, REGISTER_RULES, RULES, schedule
from cupola.targets.gpu.units import MFMA, WMMA

HOPPER = "sm_90a"  # the a: with instructions that no later one has
RUNTIME, HIP_RUNTIME = (
    Path(__file__).parent / "drivers" / f"{name}.c" for name in ("libcuda", "libamdhip64")
)  # of which every library holds one
LIMITS = {"max_threads_per_block": 1024, "max_num_threads": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}


AMD_UNITS = {"gfx942": MFMA, "gfx1100": WMMA}


def cuda_like(spec: DeviceSpec, architecture: str) -> Target:
    """A target with CUDA's kernels for a compute capability; who compiles them gives it `code` and, if need be, `link`."""
    return _target(spec, architecture, HOPPER_RULES if architecture == HOPPER else MATRIX_RULES)


def rocm_like(spec: DeviceSpec, architecture: str) -> Target:
    """The same for an instruction set of AMD's, whose kernels TVM writes as those for CUDA."""
    gpu = Gpu(matrix=AMD_UNITS[architecture])
    return _target(spec, "sm_80", tuple(for_gpu(rule, gpu) for rule in REGISTER_RULES))


def _target(spec: DeviceSpec, architecture: str, matrix_rules: tuple[KernelRule, ...]) -> Target:
    abilities = Abilities(activation_bits=(16,), keeps_blocks=False, rounds_products=True, latent_attention=False)
    target = tvm.target.Target({"kind": "cuda", "arch": architecture, **LIMITS}, host="llvm")
    kernels = (*matrix_rules, *RULES)
    return Target(spec=spec, tvm=target, abilities=abilities, kernels=kernels, optional=OPTIONAL, schedules=(schedule(target),))
