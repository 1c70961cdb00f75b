"""WebGPU on this machine: wgpu-native, as pip's package wgpu brings it, its Python left aside."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from cupola.runtime.environment import wgpu_library

_EXTRAS, _PRIMARY = 0x00030004, 0b101101  # WGPUSType_InstanceExtras; Vulkan, Metal, Direct3D 12 and the browser's (wgpu.h)


def find_resources() -> Path | None:
    """The folder that has the library and its headers."""
    spec = find_spec("wgpu")
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    return next((folder for folder in (Path(each) / "resources" for each in folders) if (folder / "wgpu.h").exists()), None)


def find_library() -> str | None:
    """The file of the library."""
    folder = find_resources()
    found = sorted(folder.glob("*wgpu_native-release.*")) if folder is not None else []
    return wgpu_library() or (str(found[0]) if found else None)


def show_driver(library: ctypes.CDLL) -> None:
    """Tells a compiled library where wgpu-native is, if it is one for WebGPU, before it is opened."""
    if hasattr(library, "cupola_driver"):
        _ask_no_window_system()
        library.cupola_driver(os.fsencode(find_library() or "libwgpu_native.so"))


def _ask_no_window_system() -> None:
    """Leaves out Mesa's layer that sorts devices by what a window system says: where there is none, it complains on standard error."""
    os.environ.setdefault("NODEVICE_SELECT", "1")


@cache
def has_adapter() -> bool:
    """True if there is a GPU, or a CPU that stands in for one, that libraries for WebGPU could use."""
    file = find_library()
    if file is None:
        return False
    _ask_no_window_system()
    try:
        native = ctypes.CDLL(file)
    except OSError:
        return False
    native.wgpuCreateInstance.restype, native.wgpuCreateInstance.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    native.wgpuInstanceEnumerateAdapters.restype = ctypes.c_size_t
    native.wgpuInstanceEnumerateAdapters.argtypes = [ctypes.c_void_p] * 3
    extras = (ctypes.c_uint64 * 64)(0, _EXTRAS, _PRIMARY)  # WGPUInstanceExtras, of which all else is 0
    instance = native.wgpuCreateInstance((ctypes.c_uint64 * 4)(ctypes.addressof(extras)))  # WGPUInstanceDescriptor
    return bool(native.wgpuInstanceEnumerateAdapters(instance, None, None))
