"""The features of this machine's processor, as its system or the processor itself says, in the words of Linux's /proc/cpuinfo.

`runtime/embed/features.c` has the same tables for programs in C.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Bits of AT_HWCAP, and from 64 on of AT_HWCAP2 (Linux's arch/arm64/include/uapi/asm/hwcap.h).
_HWCAPS = {
    "asimd": 1, "atomics": 8, "fphp": 9, "asimdhp": 10, "jscvt": 13, "fcma": 14, "lrcpc": 15, "asimddp": 20, "i8mm": 64 + 13,
}  # fmt: skip
_AT_HWCAP, _AT_HWCAP2 = 16, 26
# https://developer.apple.com/documentation/kernel/1387446-sysctlbyname/determining_instruction_set_characteristics
_SYSCTLS = {
    "arm64": {
        "atomics": "arm.FEAT_LSE", "fphp": "arm.FEAT_FP16", "asimdhp": "arm.FEAT_FP16", "jscvt": "arm.FEAT_JSCVT",
        "fcma": "arm.FEAT_FCMA", "lrcpc": "arm.FEAT_LRCPC", "asimddp": "arm.FEAT_DotProd", "i8mm": "arm.FEAT_I8MM",
    },
    "x86_64": {
        "fma": "fma", "f16c": "f16c", "avx2": "avx2_0", "avx512f": "avx512f", "avx512dq": "avx512dq", "avx512bw": "avx512bw",
        "avx512vl": "avx512vl",
    },
}  # fmt: skip
# PF_ARM_V81_ATOMIC_INSTRUCTIONS_AVAILABLE and so on (Windows' winnt.h); every processor of theirs has NEON.
_WINDOWS_ARM = {"atomics": 34, "asimddp": 43, "jscvt": 44, "lrcpc": 45, "i8mm": 66, "asimdhp": 67, "fphp": 67}
# Where CPUID says it (Intel's manual, volume 2A; AMD's, volume 3): leaf, subleaf, register (eax, ebx, ecx, edx), bit; and which registers
# the system must save (XCR0): 6 is AVX's, E6 AVX-512's.
_CPUID = {
    "fma": (1, 0, 2, 12, 0x6), "f16c": (1, 0, 2, 29, 0x6), "avx2": (7, 0, 1, 5, 0x6), "avx512f": (7, 0, 1, 16, 0xE6),
    "avx512dq": (7, 0, 1, 17, 0xE6), "avx512bw": (7, 0, 1, 30, 0xE6), "avx512vl": (7, 0, 1, 31, 0xE6),
    "avx512_vnni": (7, 0, 2, 11, 0xE6), "avx_vnni": (7, 1, 0, 4, 0x6), "avx512_bf16": (7, 1, 0, 5, 0xE6),
    "sse4a": (0x80000001, 0, 2, 6, 0x0),
}  # fmt: skip
_XCR0 = 0xFFFFFFFF  # for a leaf: what registers the system saves, which another instruction says
# By Windows' calling convention: leaf in ecx, subleaf in edx, and r8 points to room for eax, ebx, ecx and edx.
_CODE = bytes.fromhex(
    "53"  # push rbx
    "89C8 89D1"  # mov eax, ecx; mov ecx, edx
    "83F8FF 7404"  # cmp eax, -1; je to xgetbv
    "0FA2 EB05"  # cpuid; jmp behind xgetbv
    "31C9 0F01D0"  # xor ecx, ecx; xgetbv
    "418900 41895804 41894808 4189500C"  # mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx; mov [r8+12], edx
    "5B C3"  # pop rbx; ret
)


@functools.cache
def cpu_flags(system: str, processor: str) -> frozenset[str] | None:
    """Features of the processor that the system lets programs use; None where nobody can be asked.

    Args:
        system: as `machine.system_here` has it.
        processor: as `machine.here` has it.
    """
    if system in ("linux", "android"):
        return _granted() if processor == "aarch64" else _listed()
    if system == "macos":
        return _of_sysctl("arm64" if processor == "aarch64" else processor)
    if system == "windows":
        return _of_windows() if processor == "aarch64" else _of_cpuid(_cpuid_of_windows())
    return None


def _listed() -> frozenset[str] | None:
    """The list of Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return None


def _granted() -> frozenset[str]:
    """Features that Linux names when it starts a process on an Arm processor; emulators do so too, while /proc is the real machine's."""
    ask = ctypes.CDLL(None).getauxval
    ask.restype, ask.argtypes = ctypes.c_ulong, (ctypes.c_ulong,)
    bits = ask(_AT_HWCAP) | ask(_AT_HWCAP2) << 64
    return frozenset(name for name, bit in _HWCAPS.items() if bits >> bit & 1)


def _of_sysctl(processor: str) -> frozenset[str]:
    """Features that macOS knows of."""
    library = ctypes.CDLL(None)

    def has(key: str) -> bool:
        value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        failed = library.sysctlbyname(f"hw.optional.{key}".encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return not failed and bool(value.value)

    always = ("asimd",) if processor == "arm64" else ()
    return frozenset((*always, *(name for name, key in _SYSCTLS.get(processor, {}).items() if has(key))))


def _of_windows() -> frozenset[str]:
    """Features of an Arm processor that Windows knows of."""
    ask = _windows().IsProcessorFeaturePresent
    return frozenset(("asimd", *(name for name, number in _WINDOWS_ARM.items() if ask(ctypes.c_uint32(number)))))


def _of_cpuid(ask: Callable[[int, int, int], object]) -> frozenset[str]:
    """Features that an x86-64 processor names itself: Windows knows of AVX-512, but not of what came after it."""
    found = (ctypes.c_uint32 * 4)()

    def read(leaf: int, subleaf: int) -> tuple[int, ...]:
        ask(leaf, subleaf, ctypes.addressof(found))
        return tuple(found)

    if not read(1, 0)[2] >> 27 & 1:  # OSXSAVE, without which nobody may ask what is saved
        return frozenset()
    last, saved = read(0, 0)[0], read(_XCR0, 0)[0]
    last_of_7 = read(7, 0)[0] if last >= 7 else -1
    known = {name: place for name, place in _CPUID.items() if (place[0] < 7 or place[1] <= last_of_7) and saved & place[4] == place[4]}
    return frozenset(name for name, (leaf, subleaf, register, bit, _) in known.items() if read(leaf, subleaf)[register] >> bit & 1)


def _cpuid_of_windows() -> Callable[[int, int, int], object]:
    """`_CODE` in memory that may be executed. It is kept."""
    kernel = _windows()
    kernel.VirtualAlloc.restype = ctypes.c_void_p
    commit_and_reserve, execute_read_write = 0x3000, 0x40
    address = kernel.VirtualAlloc(
        None, ctypes.c_size_t(len(_CODE)), ctypes.c_uint32(commit_and_reserve), ctypes.c_uint32(execute_read_write)
    )
    ctypes.memmove(address, _CODE, len(_CODE))
    return ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(address)


def _windows() -> Any:
    return getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009 - mypy knows this system's ctypes alone
