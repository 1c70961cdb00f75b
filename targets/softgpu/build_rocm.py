"""Compiles kernels for AMD's GPUs into a library for this CPU, as `build.py` does those for CUDA."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tvm import IRModule

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.environment import debug_level
from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here
from cupola.targets.base import Target
from cupola.targets.gpu.code import cuda_source, write_launches
from cupola.targets.gpu.cuda import AMD_UNITS, HIP_RUNTIME, rocm_like
from cupola.targets.native.code import Code
from cupola.targets.softgpu.build import DRIVER, link
from cupola.targets.softgpu.translate import translate


def softrocm_target(name: str, architecture: str) -> Target:
    """The target for an instruction set of AMD's. Raises UnsupportedError where there is no compiler for it."""
    if find_spec("ziglang") is None:
        raise UnsupportedError("needs clang", field="target softrocm", fix="`pip install ziglang`")
    spec = DeviceSpec(name, "rocm", name.replace(":", "-"), f"{here()}-linux-gnu", ())
    return replace(rocm_like(spec, architecture), code=partial(_code, architecture), link=link)


def rocm_head(architecture: str) -> str:
    """The text before kernels: the number of a wavefront's lanes, and the header."""
    return f'#define SOFTGPU_LANES {AMD_UNITS[architecture].lanes}\n#include "softrocm.h"\n'


def _code(architecture: str, mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    code, launches = write_launches(mod, plan, target.tvm, folder)
    source = cuda_source(code, target.tvm, has_tensor_cores=False)
    kernels = folder / "kernels.cpp"
    symbols = [launch.symbol for kernel in plan.kernels for launch in code.launches[kernel.name]]
    kernels.write_text(translate(source, symbols, rocm_head(architecture)), encoding="utf-8")
    return Code((), (launches, kernels, DRIVER, HIP_RUNTIME), {"kernels.cu": source} if debug_level() >= 4 else {})
