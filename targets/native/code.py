"""The part of a library that holds its kernels: files to link, written by the target."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tvm import IRModule, tirx

from cupola.runtime.artifact.plan import Plan
from cupola.runtime.environment import debug_level, num_threads
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
    """Machine code of this or another CPU, an object a kernel, and the team of threads that runs it. Several are compiled at once."""
    kernels = sorted((var for var, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)), key=lambda var: var.name_hint)

    def make(number: int) -> tuple[Path, str]:
        kernel = IRModule({kernels[number]: mod[kernels[number]]})
        compiled, file = compile_kernels(kernel, target), folder / f"{number:04d}.o"
        compiled.write_to_file(str(file), "o")
        return file, compiled.inspect_source("asm") if debug_level() >= 4 else ""

    with ThreadPoolExecutor(num_threads()) as pool:
        made = list(pool.map(make, range(len(kernels))))
    return Code(tuple(file for file, _ in made), RUNTIME, {"kernels.s": "".join(text for _, text in made)} if debug_level() >= 4 else {})
