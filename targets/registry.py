"""The targets by name. Each folder here that has a `target.py` declares some in its `TARGETS`; others are registered."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from cupola.runtime.errors import OptionError
from cupola.targets.entry import TargetEntry

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


def get_targets(names: str) -> tuple[Target, ...]:
    """The targets of a list such as "cpu:avx512vnni,cpu:avx2".

    Raises:
        OptionError: as `get_target`; one comes twice.
    """
    targets = tuple(map(get_target, names.split(",")))
    if len({target.spec.device for target in targets}) < len(targets):
        raise OptionError(f"{names!r} has one twice", field="target", fix="name each once")
    return targets


def get_target(name: str) -> Target:
    """The target called `name`.

    Raises:
        OptionError: no such target, or one of this machine, which has nothing that it could stand for.
    """
    found = next((entry for entry in list_targets() if entry.name == name), None)
    if found is None:
        raise OptionError(f"{name!r} is not a target", field="target", fix=f"one of {', '.join(target_names())}")
    return found.make()


@functools.cache
def _declared() -> tuple[TargetEntry, ...]:
    """The targets that folders declare, in the order of the folders' names."""
    folders = sorted(file.parent.name for file in Path(__file__).parent.glob("*/target.py"))
    declared: Sequence[Sequence[TargetEntry]] = [import_module(f"cupola.targets.{folder}.target").TARGETS for folder in folders]
    return tuple(entry for entries in declared for entry in entries)
