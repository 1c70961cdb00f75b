"""Compiles kernels for Apple's GPUs into a library for macOS, by ziglang, on any machine. Metal compiles their text when it is opened."""

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
from cupola.targets.base import Target
from cupola.targets.gpu.metal import KIND, metal_like, write_kernels
from cupola.targets.native.code import Code

SYSTEM = "13.0"  # of macOS, the oldest
# Nobody links against the library, so that its own name is of no use but must not be a path of this machine.
_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-g0", "-shared", "-Wl,-install_name,lib.so")


def metal_target() -> Target:
    """The target."""
    return replace(metal_like(DeviceSpec("metal", KIND, "metal", "aarch64-macos", ())), code=_code, link=link_macos)


def _code(mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    source, files = write_kernels(mod, plan, target.tvm, folder)
    return Code((), files, {"kernels.metal": source} if debug_level() >= 4 else {})


def link_macos(objects: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
    """Compiles `sources` and links them with `objects` for macOS on arm64; only what is exported is visible.

    Raises:
        UnsupportedError: there is no ziglang on this machine, or it fails.
    """
    if find_spec("ziglang") is None:
        raise UnsupportedError("needs a compiler for macOS", field="target metal", fix="`pip install ziglang`")
    cc = [*interpreter(), "-m", "ziglang", "cc", "-target", f"aarch64-macos.{SYSTEM}"]
    command = [*cc, *_FLAGS, "-o", str(output), *map(str, (*sources, *objects))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["without a message"]
        raise UnsupportedError(f"the compiler failed: {lines[0].strip()}", field="target metal", fix="is there room on the disk?")
