"""From objects and C sources to a shared library, for this machine or another one, that needs nothing but the system's C library."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from cupola.runtime.environment import interpreter
from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here
from cupola.targets.native.object_symbols import hide_coff, hide_mach_o
from cupola.targets.native.systems import COFF, ELF, MACH_O, System, is_here, this_system

RUNTIME = tuple(Path(__file__).with_name(name) for name in ("runtime.c", "cores.c", "affinity.c", "scratch.c"))  # which every library holds
_COMPILE = ("-std=gnu11", "-O2", "-fvisibility=hidden", "-g0")
# Of the last line, what libraries for devices have.
_EXPORTS = """\
{ global: cupola_abi; cupola_run; cupola_run_calls; cupola_set_threads; cupola_workspace_bytes; cupola_kernel_*;
  cupola_set_cores; cupola_set_power_saver; cupola_share_turn;
  cupola_driver; cupola_open; cupola_error; cupola_allocate; cupola_free; cupola_copy; cupola_clear; cupola_memory; cupola_synchronize;
  local: *; };
"""
_HIDE = {MACH_O: hide_mach_o, COFF: hide_coff}


def link_library(system: System, architecture: str, objects: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
    """Compiles `sources` and links them with `objects`, which are changed, for such a machine; only what is ours is visible.

    Raises:
        UnsupportedError: there is no compiler for it on this machine, or it fails.
    """
    with TemporaryDirectory() as name:  # linkers leave files beside the library
        folder = Path(name)
        for file in objects if system.format in _HIDE else ():
            _HIDE[system.format](file)
        compiler, made = compiler_for(system, architecture), folder / output.name
        inputs = [str(file) for file in (*sources, *objects, *_stand_ins(system, compiler, folder))]
        flags = [*_COMPILE, *system.compiling]
        _run([*compiler, *flags, "-shared", *_exports(system, folder), "-o", str(made), *inputs, *system.linking])
        shutil.move(made, output)


def link_here(objects: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
    """`link_library` for this machine."""
    link_library(this_system(), here(), objects, sources, output)


def compiler_for(system: System, architecture: str) -> list[str]:
    """The machine's C compiler, if it is for that system and architecture, else the one that the package ziglang brings, which is for all.

    Raises:
        UnsupportedError: there is none.
    """
    native = is_here(system, architecture)
    driver = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None) if native else None
    if driver is not None:
        return [driver]
    if find_spec("ziglang") is None:
        wanted = "install gcc or clang, or " if native else ""
        problem = f"found no C compiler to link the library for {system.triple(architecture)} with"
        raise UnsupportedError(problem, fix=f"{wanted}`pip install ziglang`")
    return [*interpreter(), "-m", "ziglang", "cc", *([] if native else ["-target", f"{architecture}-{system.zig}"])]


def _exports(system: System, folder: Path) -> list[str]:
    if system.format != ELF:
        return []
    file = folder / "exports"
    file.write_text(_EXPORTS, encoding="utf-8")
    return [f"-Wl,--version-script={file}", "-Wl,--undefined-version"]  # libraries differ in what they have of these


def _stand_ins(system: System, compiler: Sequence[str], folder: Path) -> list[Path]:
    """Libraries of the system's names with its functions and nothing in them, to link against where the system's are not at hand."""
    made = [folder / f"lib{library}.so" for library in system.libraries]
    for file in made:
        names = Path(__file__).parent.joinpath("bionic", f"{file.stem}.symbols").read_text(encoding="utf-8").split()
        source = file.with_suffix(".s")
        source.write_text("".join(f".globl {name}\n.type {name},%function\n{name}:\n" for name in names), encoding="utf-8")
        _run([*compiler, "-nostdlib", "-shared", f"-Wl,-soname,{file.name}", "-o", str(file), str(source)])
    return made


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a message"]
        cause = next((line for line in lines if "error:" in line or "undefined" in line), lines[-1])
        raise UnsupportedError(f"the linker failed: {cause}", field=command[0], fix="is there room on the disk, and a working C compiler?")
