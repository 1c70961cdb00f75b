"""Compiles CUDA's kernels for AMD's GPUs by ziglang's clang and linker, into a library that carries them and launches them."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from tvm import IRModule

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.environment import debug_level, interpreter
from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here
from cupola.targets.base import Target
from cupola.targets.gpu.code import cuda_source, without_includes, write_image, write_launches
from cupola.targets.gpu.cuda import HIP_RUNTIME, rocm_like
from cupola.targets.native.code import Code

_HEADER = Path(__file__).with_name("rocm.h")
# As HIP, but nothing of ROCm's is there or needed. Objects of version 5 load from ROCm 6 on.
_HIP = ("-x", "hip", "--cuda-device-only", "-nogpuinc", "-nogpulib", "-nostdinc", "-fuse-cuid=none", "-mcode-object-version=5")
_FLAGS = ("-std=c++17", "-O3", "-w", "-include", str(_HEADER))


def rocm_target(architecture: str) -> Target:
    """The target for an instruction set such as gfx942; the host is Linux on this machine's architecture."""
    spec = DeviceSpec(f"rocm:{architecture}", "rocm", architecture, f"{here()}-linux-gnu", ())
    return replace(rocm_like(spec, architecture), code=_code)


def _code(mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    code, launches = write_launches(mod, plan, target.tvm, folder)
    source = cuda_source(code, target.tvm, has_tensor_cores=False)
    assembly = compile_rocm(source, target.spec.device, folder)
    image = write_image(link_rocm(assembly, target.spec.device), folder)
    texts = {"kernels.cu": source, "kernels.gcn": assembly.read_text(encoding="utf-8")} if debug_level() >= 4 else {}
    return Code((), (launches, image, HIP_RUNTIME), texts)


def compile_rocm(source: str, architecture: str, folder: Path) -> Path:
    """The kernels of CUDA C++ source in assembly, which ends with what each of them needs.

    Raises:
        UnsupportedError: there is no compiler, or it fails, as over what `rocm.h` does not know.
    """
    if find_spec("ziglang") is None:
        raise UnsupportedError("needs clang", field=f"target rocm:{architecture}", fix="`pip install 'cupola[rocm]'`")
    file, assembly = folder / "kernels.hip", folder / "kernels.gcn.s"
    file.write_text(without_includes(source), encoding="utf-8")
    _run(architecture, "clang", *_HIP, f"--offload-arch={architecture}", *_FLAGS, "-S", str(file), "-o", str(assembly))
    return assembly


def link_rocm(assembly: Path, architecture: str) -> Path:
    """The code object of `compile_rocm`'s assembly, as the driver loads it. Raises UnsupportedError."""
    made, linked = assembly.with_suffix(".o"), assembly.with_suffix(".hsaco")
    _run(
        architecture,
        "clang",
        "--target=amdgcn-amd-amdhsa",
        f"-mcpu={architecture}",
        "-mcode-object-version=5",
        "-c",
        str(assembly),
        "-o",
        str(made),
    )
    _run(architecture, "ld.lld", "-shared", "--no-undefined", str(made), "-o", str(linked))
    return linked


def _run(architecture: str, *command: str) -> None:
    done = subprocess.run([*interpreter(), "-m", "ziglang", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["without a message"]
        raise UnsupportedError(f"the compiler failed: {lines[0].strip()}", field=f"target rocm:{architecture}")
