"""Compiles kernels by NVIDIA's nvcc, found on the path or as pip brings it, into a library that carries them and launches them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from tvm import IRModule

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.environment import debug_level
from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here
from cupola.targets.base import Target
from cupola.targets.gpu.code import cuda_source, write_image, write_launches
from cupola.targets.gpu.cuda import RUNTIME, cuda_like
from cupola.targets.native.code import Code


def cuda_target(architecture: str) -> Target:
    """The target for a compute capability such as sm_80; the host is Linux on this machine's architecture."""
    spec = DeviceSpec(f"cuda:{architecture}", "cuda", architecture, f"{here()}-linux-gnu", ())
    return replace(cuda_like(spec, architecture), code=_code)


def _code(mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    code, launches = write_launches(mod, plan, target.tvm, folder)
    source = cuda_source(code, target.tvm)
    image = write_image(compile_cuda(source, target.spec.device, folder), folder)
    return Code((), (launches, image, RUNTIME), {"kernels.cu": source} if debug_level() >= 4 else {})


def compile_cuda(source: str, architecture: str, folder: Path) -> Path:
    """The kernels of CUDA C++ source as a file that the driver loads: machine code, and PTX that it compiles for later architectures.

    Raises:
        UnsupportedError: there is no nvcc, or it fails.
    """
    nvcc, file, image = find_nvcc(), folder / "kernels.cu", folder / "kernels.fatbin"
    file.write_text(source, encoding="utf-8")
    virtual = architecture.replace("sm_", "compute_")
    code = f"-gencode=arch={virtual},code=[{architecture},{virtual}]"
    command = [nvcc, "-fatbin", code, "-O3", "-std=c++17", "-w", "-o", str(image), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "fatal" in line] or ["without a message"]
        raise UnsupportedError(f"nvcc failed: {lines[0].strip()}", field=f"target cuda:{architecture}", fix="is it one of CUDA 12 or 13?")
    return image


def find_nvcc() -> str:
    """NVIDIA's compiler: on the path, or in pip's packages. Raises UnsupportedError."""
    found = shutil.which("nvcc")
    spec = find_spec("nvidia") if found is None else None
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        found = found or next((str(file) for file in sorted(Path(folder).glob("*/bin/nvcc")) if os.access(file, os.X_OK)), None)
    if found is None:
        raise UnsupportedError("needs NVIDIA's compiler", field="target cuda", fix="`pip install 'cupola[cuda]'`, or put nvcc on the path")
    return found
