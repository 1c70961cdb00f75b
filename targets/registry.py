"""The targets by name. Each folder here that has a `target.py` declares some in its `TARGETS`; others are registered."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from cupola.runtime.errors import OptionError
from cupola.targets.entry import TargetEntry
from cupola.targets.native.systems import SYSTEMS, this_system

if TYPE_CHECKING:
    from cupola.targets.base import Target

_REGISTERED: dict[str, TargetEntry] = {}


def register_target(entry: TargetEntry) -> None:
    """Makes a target known to this process that no folder here declares.

    Raises:
        OptionError: there is one of that name.
    """
    if entry.name in target_names():
        raise OptionError(f"there is a {entry.name!r} already", field="target", fix="give it another name")
    _REGISTERED[entry.name] = entry


def target_names() -> tuple[str, ...]:
    """Every name that `get_target` takes."""
    return tuple(entry.name for entry in list_targets())


def list_targets() -> tuple[TargetEntry, ...]:
    """All targets, those of a folder side by side."""
    return (*_declared(), *_REGISTERED.values())


def name_targets(names: str, systems: str | None = None) -> tuple[str, ...]:
    """The names of a list such as "cpu:dotprod@android,cpu:avx2"; those without a system once for each of `systems`: "linux,macos".

    Raises:
        OptionError: there is no such target, or it can't be made for such a system.
    """
    asked = [] if systems is None else systems.split(",")
    found = [full for name in names.split(",") for full in ([name] if "@" in name or not asked else [f"{name}@{s}" for s in asked])]
    for name in found:
        _find(name)
    return tuple(found)


def get_targets(names: str, systems: str | None = None) -> tuple[Target, ...]:
    """The targets of a list such as "cpu:avx512vnni,cpu:avx2", as `name_targets` reads it.

    Raises:
        OptionError: as `get_target`; one comes twice.
    """
    targets = tuple(map(get_target, name_targets(names, systems)))
    if len({(target.spec.device, target.spec.triple) for target in targets}) < len(targets):
        raise OptionError(f"{names!r} has one twice", field="target", fix="name each once")
    return targets


def get_target(name: str) -> Target:
    """The target called `name`, perhaps with the operating system behind an `@`: cpu:dotprod@android.

    Raises:
        OptionError: no such target, or one of this machine, which has nothing that it could stand for.
    """
    entry, system = _find(name)
    return entry.make() if system is None or entry.make_for is None else entry.make_for(system)


def _find(name: str) -> tuple[TargetEntry, str | None]:
    plain, at, system = name.partition("@")
    entry = next((entry for entry in list_targets() if entry.name == plain), None)
    if entry is None:
        raise OptionError(f"{plain!r} is unknown", field="target", fix=f"choose from {', '.join(target_names())}")
    if not at or (not entry.systems and system == this_system().name):
        return entry, None
    if not entry.systems:
        others = ", ".join(other.name for other in list_targets() if system in other.systems)
        problem = f"{system!r} can't be chosen for {plain}, which is of one system" if others else f"{system!r} is not a system"
        raise OptionError(problem, field="os", fix=f"take one of {others}" if others else f"choose from {', '.join(SYSTEMS)}")
    if system not in entry.systems:
        problem = f"{system!r} is not a system of {plain}" if system in SYSTEMS else f"{system!r} is not a system"
        raise OptionError(problem, field="os", fix=f"choose from {', '.join(entry.systems)}")
    return entry, system


@functools.cache
def _declared() -> tuple[TargetEntry, ...]:
    """The targets that folders declare, in the order of the folders' names."""
    folders = sorted(file.parent.name for file in Path(__file__).parent.glob("*/target.py"))
    declared: Sequence[Sequence[TargetEntry]] = [import_module(f"{__package__}.{folder}.target").TARGETS for folder in folders]
    return tuple(entry for entries in declared for entry in entries)
