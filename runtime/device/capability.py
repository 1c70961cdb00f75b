"""NVIDIA's GPUs by their compute capability, as the driver has it, beside the one that a library was compiled for.

Machine code for sm_80 runs on 8.x from 8.0 on, and the PTX that libraries carry on all later ones (CUDA C++ Programming Guide, "Application
compatibility"). Code for sm_90a, in which nothing is promised onward, runs on 9.0 alone.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache

DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
_ARCHITECTURE = re.compile(r"sm_(\d+)(\d)(a?)")

Capability = tuple[int, int]


def capability_fault(device: str) -> str | None:
    """The reason why the GPU here can't run what was compiled for `device`; None if it can, or `device` is no architecture of NVIDIA's."""
    found = _ARCHITECTURE.fullmatch(device)
    if found is None:
        return None
    here = compute_capability()
    if isinstance(here, str):
        return here
    wanted, is_specific = (int(found[1]), int(found[2])), bool(found[3])
    if here == wanted or (here > wanted and not is_specific):
        return None
    range_ = f"{wanted[0]}.{wanted[1]} {'alone' if is_specific else 'and later'}"
    return f"it runs on compute capability {range_}, and this machine's GPU has {here[0]}.{here[1]}"


def preference(device: str) -> tuple[int, int, bool]:
    """The larger, the more of a GPU it uses that both run on."""
    found = _ARCHITECTURE.fullmatch(device)
    return (0, 0, False) if found is None else (int(found[1]), int(found[2]), bool(found[3]))


@cache
def compute_capability() -> Capability | str:
    """The first GPU's, or the reason why there is none."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return "there is no NVIDIA driver here"
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    calls = (
        ("cuInit", (ctypes.c_uint(0),)),
        ("cuDeviceGet", (ctypes.byref(device), ctypes.c_int(0))),
        ("cuDeviceGetAttribute", (ctypes.byref(major), ctypes.c_int(_MAJOR), device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), ctypes.c_int(_MINOR), device)),
    )
    for name, arguments in calls:
        if code := getattr(driver, name)(*arguments):
            return f"NVIDIA's driver finds no GPU that it can use: {name} gives {code} ({_text(driver, code)})"
    return major.value, minor.value


def _text(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
    return (text.value or b"without a text").decode("utf-8", "replace")
