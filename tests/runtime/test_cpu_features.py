"""Features of a processor, asked for in the ways of each system."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

import pytest

import cupola
from cupola.runtime import cpu_features
from cupola.runtime.machine import here, system_here
from tests.systems import needs

FEATURES_C = Path(cupola.__file__).parent / "runtime" / "embed" / "features.c"


@pytest.mark.skipif((here(), system_here()) != ("x86_64", "linux"), reason="this machine has no CPUID, or nothing to hold it against")
@needs("to know what Linux lists")
def test_the_processor_says_what_linux_lists() -> None:
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(cpu_features._CODE)
    # Windows' first three arguments are Linux's fourth, third and fifth.
    code = ctypes.CFUNCTYPE(None, *[ctypes.c_uint64] * 5)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    found = cpu_features._of_cpuid(lambda leaf, subleaf, room: code(0, 0, subleaf, leaf, room))
    listed = cpu_features.cpu_flags("linux", "x86_64")
    assert listed is not None and found == listed & set(cpu_features._CPUID)


def test_macs_are_asked_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"hw.optional.arm.FEAT_DotProd": 1, "hw.optional.arm.FEAT_I8MM": 0, "hw.optional.avx2_0": 1}

    class Library:
        def sysctlbyname(self, key: bytes, value: object, size: object, new: None, length: object) -> int:
            if key.decode() not in present:
                return -1
            value._obj.value = present[key.decode()]  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    assert cpu_features._of_sysctl("arm64") == {"asimd", "asimddp"}
    assert cpu_features._of_sysctl("x86_64") == {"avx2"}


def test_c_has_the_same_tables() -> None:
    text = FEATURES_C.read_text(encoding="utf-8")
    hwcaps, windows = (
        {n: eval(v) for n, v in re.findall(r'\{"(\w+)", ([\d +]+)\}', part)} for part in (text.split("_WIN32")[0], text.split("_WIN32")[1])
    )
    cpuid = re.findall(r'\{"(\w+)", (\w+), (\d+), (\d+), (\d+), (0x\w+)\}', text)
    macs = dict(re.findall(r'\{"(\w+)",\s+"hw\.optional\.([\w.]+)"\}', text))
    assert hwcaps == cpu_features._HWCAPS and windows == cpu_features._WINDOWS_ARM
    assert {name: tuple(int(n, 0) for n in place) for name, *place in cpuid if not name.startswith("amx")} == cpu_features._CPUID
    assert macs == cpu_features._SYSCTLS["arm64"]
