"""The runtimes and the limits of targets with CUDA's kernels, whoever compiles them."""

from __future__ import annotations

from pathlib import Path

import tvm

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.targets.base import Abilities, Target
from cupola.targets.gpu.rules import HOPPER_RULES, MATRIX_RULES, OPTIONAL, RULES, schedule

HOPPER = "sm_90a"  # the a: with instructions that no later one has
RUNTIME, HIP_RUNTIME = (
    Path(__file__).parent / "drivers" / f"{name}.c" for name in ("libcuda", "libamdhip64")
)  # of which every library holds one
LIMITS = {"max_threads_per_block": 1024, "max_num_threads": 1024, "max_shared_memory_per_block": 49152, "thread_warp_size": 32}


def cuda_like(spec: DeviceSpec, architecture: str, has_tensor_cores: bool = True) -> Target:
    """A target with CUDA's kernels for a compute capability; who compiles them gives it `code` and, if need be, `link`."""
    first = (HOPPER_RULES if architecture == HOPPER else MATRIX_RULES) if has_tensor_cores else ()
    abilities = Abilities(activation_bits=(16,), keeps_blocks=False, rounds_products=has_tensor_cores, recurrent_state=False)
    target = tvm.target.Target({"kind": "cuda", "arch": architecture, **LIMITS}, host="llvm")
    return Target(spec=spec, tvm=target, abilities=abilities, kernels=(*first, *RULES), optional=OPTIONAL, schedules=(schedule(target),))
