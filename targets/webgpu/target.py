"""The target `webgpu`: whatever GPU this machine has, by wgpu-native."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cupola.runtime.wgpu_native import has_adapter
from cupola.targets.entry import EXECUTED, TargetEntry

if TYPE_CHECKING:
    from cupola.targets.base import Target


def _make() -> Target:
    from cupola.targets.webgpu.build import webgpu_target  # here, so that names are known without tvm, seconds of start-up

    return webgpu_target()


TARGETS = (
    TargetEntry("webgpu", "any GPU that Vulkan drives, through WebGPU; libraries are for Linux so far", _make, has_adapter, EXECUTED),
)
