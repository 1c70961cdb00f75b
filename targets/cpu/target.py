"""The names of CPUs as targets: `cpu` is this machine, `cpu:<isa>` one instruction set, on any system that has it.

`cpu:batch-invariant` is this machine without what makes a token's logits depend on the rows beside it: batch, chunks, caches.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cupola.runtime.errors import OptionError
from cupola.targets.cpu.isa import ISA, ISAS, runs_here
from cupola.targets.entry import BUILT, EMULATED, INSPECTED, RAN, TargetEntry
from cupola.targets.native.systems import LINUX, SYSTEMS, this_system

if TYPE_CHECKING:
    from cupola.targets.base import Target


def _make(isa: ISA, system: str | None = None) -> Target:
    from cupola.targets.cpu.kernels import cpu_target  # here, so that names are known without tvm, seconds of start-up

    return cpu_target(isa, this_system() if system is None else SYSTEMS[system])


def _best(batch_invariant: bool) -> ISA | None:
    """The first that this machine has."""
    return next((isa for isa in ISAS if runs_here(isa) and (isa.batch_invariant or not batch_invariant)), None)


def _make_best(batch_invariant: bool) -> Target:
    isa = _best(batch_invariant)
    if isa is None:
        names = ", ".join(f"cpu:{isa.name}" for isa in ISAS)
        raise OptionError("none of the known instruction sets fits this machine", field="target", fix=f"one of {names}")
    return _make(isa)


def _here(name: str, description: str, batch_invariant: bool) -> TargetEntry:
    return TargetEntry(name, description, partial(_make_best, batch_invariant), lambda: _best(batch_invariant) is not None, RAN)


def _named(isa: ISA) -> TargetEntry:
    systems = {system.name: _level(isa, system.name) for system in SYSTEMS.values() if isa.architecture in system.architectures}
    level = systems[LINUX.name]
    return TargetEntry(
        f"cpu:{isa.name}", isa.description, partial(_make, isa), partial(runs_here, isa), level, systems, partial(_make, isa)
    )


# By system, what tests run (tests/runtime/embed), and whose libraries they look into (tests/targets/native/test_systems.py).
_EMULATED = {"linux": ("i8mm", "dotprod", "neon", "riscv64"), "windows": ("avx2",)}
_INSPECTED = {"macos": ("dotprod", "apple-m1"), "android": ("dotprod",)}


def _level(isa: ISA, system: str) -> str:
    if isa.architecture == "x86_64" and system == LINUX.name:
        return RAN
    return EMULATED if isa.name in _EMULATED.get(system, ()) else INSPECTED if isa.name in _INSPECTED.get(system, ()) else BUILT


TARGETS = (
    _here("cpu", "the best of the below that this machine has", False),
    _here("cpu:batch-invariant", "the best of them whose answers never depend, by a bit, on what else a step holds", True),
    *map(_named, ISAS),
)
