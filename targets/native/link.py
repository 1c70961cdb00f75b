"""From objects and C sources to a shared library that needs nothing but the C library."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cupola.runtime.environment import interpreter
from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here

RUNTIME = Path(__file__).with_name("runtime.c")  # which every library holds
_COMPILE = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread", "-g0")
# Threads of a library outlive whoever loaded it, so that it stays in memory once it is there.
_LINK = ("-shared", "-pthread", "-Wl,-z,nodelete", "-Wl,--no-undefined")
# Of the latter line, what libraries for devices have.
_EXPORTS = """\
{ global: cupola_abi; cupola_run; cupola_run_calls; cupola_set_threads; cupola_workspace_bytes; cupola_kernel_*;
  cupola_driver; cupola_open; cupola_error; cupola_allocate; cupola_free; cupola_copy; cupola_clear; cupola_memory; cupola_synchronize;
  local: *; };
"""


def link_elf(triple: str, objects: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
    """Compiles `sources` and links them with `objects` for the machine `triple`, as Linux has libraries; only what is ours is visible.

    Raises:
        UnsupportedError: there is no compiler for it on this machine, or it fails.
    """
    exports = output.with_suffix(".exports")
    exports.write_text(_EXPORTS, encoding="utf-8")
    inputs = [str(file) for file in (*sources, *objects)]
    command = [*compiler_for(triple), *_COMPILE, *_LINK, f"-Wl,--version-script={exports}", "-o", str(output), *inputs, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    exports.unlink()
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["without a message"]
        cause = next((line for line in lines if "error:" in line or "undefined" in line), lines[-1])
        raise UnsupportedError(f"the linker failed: {cause}", field=command[0], fix="is there room on the disk, and a working C compiler?")


def link_here(objects: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
    """`link_elf` for this machine."""
    link_elf(f"{here()}-linux-gnu", objects, sources, output)


def compiler_for(triple: str) -> list[str]:
    """The machine's C compiler, if it is for that architecture, else the one that the package ziglang brings, which is for all.

    Raises:
        UnsupportedError: there is none.
    """
    architecture, _, system = triple.partition("-")
    native = architecture == here()
    driver = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None) if native else None
    if driver is not None:
        return [driver]
    if find_spec("ziglang") is None:
        wanted = "install gcc or clang, or " if native else ""
        problem = f"found no C compiler to link the library for {triple} with"
        raise UnsupportedError(problem, fix=f"{wanted}`pip install ziglang`")
    return [*interpreter(), "-m", "ziglang", "cc", *([] if native else ["-target", f"{architecture}-{system}"])]
