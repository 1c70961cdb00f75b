"""The target `softgpu`: kernels for CUDA, run on this CPU thread by thread, to test them. Very slow."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from cupola.targets.entry import EXECUTED, TargetEntry

if TYPE_CHECKING:
    from cupola.targets.base import Target


def _make() -> Target:
    from cupola.targets.softgpu.build import softgpu_target  # here, so that names are known without tvm, seconds of start-up

    return softgpu_target()


TARGETS = (
    TargetEntry(
        "softgpu", "CUDA's kernels on this CPU, thread by thread, to test them", _make, lambda: find_spec("ziglang") is not None, EXECUTED
    ),
)
