"""Compiles kernels for Metal into a library for this CPU, as `build.py` does those for CUDA."""

from __future__ import annotations

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
from cupola.targets.gpu.metal import KIND, metal_like, write_kernels
from cupola.targets.native.code import Code
from cupola.targets.softgpu.build import link
from cupola.targets.softgpu.translate_metal import translate_metal

DRIVER = Path(__file__).with_name("metal_driver.c")


def softmetal_target() -> Target:
    """The target. Raises UnsupportedError where there is no compiler for it."""
    if find_spec("ziglang") is None:
        raise UnsupportedError("needs clang", field="target softmetal", fix="`pip install ziglang`")
    return replace(metal_like(DeviceSpec("softmetal", KIND, "softmetal", f"{here()}-linux-gnu", ())), code=_code, link=link)


def _code(mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    source, files = write_kernels(mod, plan, target.tvm, folder)
    kernels = folder / "kernels.cpp"
    kernels.write_text(translate_metal(source), encoding="utf-8")
    return Code((), (*files, kernels, DRIVER), {"kernels.metal": source} if debug_level() >= 4 else {})
