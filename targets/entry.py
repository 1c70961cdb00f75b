"""A line of the list of targets, known without TVM, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cupola.targets.base import Target

# How far a target was taken: libraries were built for it; their code was looked at; its kernels were executed on a CPU, by what plays their
# device; its libraries ran under an emulator of the processor or of the system (qemu, wine); they ran on hardware.
BUILT, INSPECTED, EXECUTED, EMULATED, RAN = "built", "inspected", "executed on a CPU", "ran under emulation", "ran on hardware"


@dataclass(frozen=True)
class TargetEntry:
    """A target by name.

    Attributes:
        name: for `--target`.
        description: for `cupola targets`.
        make: the target; raises OptionError where the name stands for nothing on this machine.
        runs_here: whether this machine runs what is compiled for it.
        level: how far it was taken, in one of the words above.
        systems: the operating systems that it can be made for, and how far each was taken; none where a target is of one.
        make_for: the target for one of them, by name.
    """

    name: str
    description: str
    make: Callable[[], Target]
    runs_here: Callable[[], bool]
    level: str = BUILT
    systems: Mapping[str, str] = field(default_factory=dict)
    make_for: Callable[[str], Target] | None = None
