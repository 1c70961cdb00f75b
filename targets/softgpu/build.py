"""Compiles kernels for CUDA into a library for this CPU, by ziglang's clang: GCC before 13 has no half precision in C++."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
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
from cupola.targets.gpu.code import cuda_source, write_launches
from cupola.targets.gpu.cuda import RUNTIME, cuda_like
from cupola.targets.native.code import Code
from cupola.targets.softgpu.translate import translate

_HERE = Path(__file__).parent
DRIVER = _HERE / "driver.c"
_FLAGS = ("-O2", "-fPIC", "-fvisibility=hidden", "-w", "-ffp-contract=off", "-fno-strict-aliasing", "-fsigned-char", "-fno-sanitize=all")
_CPP = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-Xclang", "-ffloat16-excess-precision=none", f"-I{_HERE}")
_CHECKED = ("-fsanitize=alignment", "-fno-sanitize-recover=alignment")  # which `softgpu.h` has the handler of
_CPUS = {"x86_64": "x86_64_v3", "aarch64": "generic"}


def softgpu_target(name: str, architecture: str) -> Target:
    """The target for an architecture of NVIDIA's. Raises UnsupportedError where there is no compiler for it."""
    if find_spec("ziglang") is None:
        raise UnsupportedError("needs clang", field="target softgpu", fix="`pip install ziglang`")
    spec = DeviceSpec(name, "cuda", name.replace(":", "-"), f"{here()}-linux-gnu", ())
    return replace(cuda_like(spec, architecture), code=_code, link=link)


def _code(mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    code, launches = write_launches(mod, plan, target.tvm, folder)
    source = cuda_source(code, target.tvm)
    kernels = folder / "kernels.cpp"
    symbols = [launch.symbol for kernel in plan.kernels for launch in code.launches[kernel.name]]
    kernels.write_text(translate(source, symbols), encoding="utf-8")
    return Code((), (launches, kernels, DRIVER, RUNTIME), {"kernels.cu": source} if debug_level() >= 4 else {})


def link(objects: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
    """Raises UnsupportedError where the compiler fails, as over instructions that `softgpu.h` does not know."""
    cc, made = [*interpreter(), "-m", "ziglang", "cc", *_FLAGS, f"-march={_CPUS[here()]}"], list(objects)
    for source in sources:
        made.append(output.with_name(f"{source.stem}.o"))
        language = (*_CPP, *_CHECKED) if source.suffix == ".cpp" else ("-std=gnu11", "-DCUPOLA_SOFTGPU")
        _run([*cc, *language, "-c", str(source), "-o", str(made[-1])])
    _run([*cc, "-shared", "-pthread", "-Wl,--no-gc-sections", "-Wl,-z,nodelete", "-o", str(output), *map(str, made), "-lm"])
    for file in made[len(objects) :]:
        file.unlink()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["without a message"]
        raise UnsupportedError(f"the compiler failed: {lines[0].strip()}", field="target softgpu")
