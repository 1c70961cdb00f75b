"""A target of one file, with nothing of its own: TVM's name for the machine, and what the manifest says of it."""

from __future__ import annotations

import platform

import tvm

from cupola.runtime.artifact.manifest import DeviceSpec
from cupola.targets.base import Target
from cupola.targets.entry import TargetEntry


def toy() -> Target:
    triple = f"{platform.machine()}-linux-gnu"
    return Target(DeviceSpec("toy", "cpu", "toy", triple, ()), tvm.target.Target({"kind": "llvm", "mtriple": triple}))


TOY = TargetEntry("toy", "this machine, slowly", toy, lambda: True)
