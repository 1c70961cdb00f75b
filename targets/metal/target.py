"""The name of Apple's GPUs as a target."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cupola.runtime.machine import here
from cupola.targets.entry import EXECUTED, TargetEntry

if TYPE_CHECKING:
    from cupola.targets.base import Target


def _make() -> Target:
    from cupola.targets.metal.build import metal_target  # here, so that names are known without tvm, seconds of start-up

    return metal_target()


def _runs_here() -> bool:
    return sys.platform == "darwin" and here() == "aarch64"


TARGETS = (TargetEntry("metal", "Apple's GPUs: M1 and later, macOS 13 and later", _make, _runs_here, EXECUTED),)
