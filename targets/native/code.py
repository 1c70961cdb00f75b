"""The part of a library that holds its kernels: files to link, written by the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tvm import IRModule

from cupola.runtime.artifact.plan import Plan
from cupola.runtime.environment import debug_level
from cupola.targets.native.interface import compile_kernels
from cupola.targets.native.link import RUNTIME

if TYPE_CHECKING:
    from cupola.targets.base import Target


@dataclass(frozen=True)
class Code:
    """Files that have each kernel as a C function (`targets/native/interface.py`), and the runtime that they need.

    Attributes:
        objects: compiled.
        sources: in C.
        texts: what to show of them at the highest level of debugging, by file name.
    """

    objects: tuple[Path, ...]
    sources: tuple[Path, ...]
    texts: Mapping[str, str] = field(default_factory=dict)


def native_code(mod: IRModule, plan: Plan, target: Target, folder: Path) -> Code:
    """Machine code of this or another CPU, and the team of threads that runs it."""
    kernels, objects = compile_kernels(mod, target), folder / "kernels.o"
    kernels.write_to_file(str(objects), "o")
    return Code((objects,), (RUNTIME,), {"kernels.s": kernels.inspect_source("asm")} if debug_level() >= 4 else {})
