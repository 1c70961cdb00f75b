"""Libraries for other systems, as their files are: what they show, and what they need."""

from __future__ import annotations

import re
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path

from tests.targets.metal.mach_o import ARM64, DYLIB, read_dylib

BIONIC = Path("targets/native/bionic")
PAGE = 0x4000
_OF_GLIBC = {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1"}


def inspect_elf(file: Path, exports: set[str], *, is_android: bool = False) -> None:
    """A library that shows just these functions, and needs of the system what there is; Android's, for pages of 16 KB."""
    needed = {line.split("[")[1].rstrip("]") for line in _read_elf("-d", file).splitlines() if "(NEEDED)" in line}
    symbols = [line.split() for line in _read_elf("--dyn-syms", file).splitlines() if line.split()[4:5] in (["GLOBAL"], ["WEAK"])]
    assert {words[7] for words in symbols if words[6] != "UND"} == exports
    if not is_android:
        assert needed <= _OF_GLIBC
        return
    known = {line for library in ("libc", "libm") for line in (BIONIC / f"{library}.symbols").read_text().split()}
    assert needed and needed <= {"libc.so", "libm.so"}
    assert {words[7] for words in symbols if words[6] == "UND"} <= known  # without versions
    segments = [line.split() for line in _read_elf("-l", file).splitlines() if line.split()[:1] == ["LOAD"]]
    assert segments and all(int(words[-1], 16) % PAGE == 0 for words in segments)


def inspect_mach_o(file: Path, exports: set[str]) -> None:
    """A signed library for Macs with Arm processors that shows these functions, and needs what libSystem has."""
    found = read_dylib(file)
    assert (found.processor, found.kind, found.system, found.is_signed) == (ARM64, DYLIB, (13, 0), True)
    assert found.libraries == ("/usr/lib/libSystem.B.dylib",)
    assert found.wanted and found.wanted <= _of_macos()
    assert {name for name in found.defined if "cupola" in name or "TVM" in name} == {f"_{name}" for name in exports}


def inspect_pe(file: Path, exports: set[str]) -> None:
    """A library for Windows on x86-64 that has these names and none that are to be hidden."""
    data = file.read_bytes()
    header = struct.unpack_from("<I", data, 0x3C)[0]
    assert (data[:2], data[header : header + 4], struct.unpack_from("<H", data, header + 4)[0]) == (b"MZ", b"PE\0\0", 0x8664)
    assert all(name.encode() + b"\0" in data for name in exports)
    assert b"cupola_code_" not in data and b"__TVMBackend" not in data


def _read_elf(option: str, file: Path) -> str:
    return subprocess.run(["readelf", "-W", option, file], capture_output=True, text=True, check=True).stdout


def _of_macos() -> set[str]:
    """Symbols that libSystem and what it re-exports have on Arm, by the list that ziglang brings (Apple's text-based stubs)."""
    text = Path(find_spec("ziglang").origin).with_name("lib").joinpath("libc", "darwin", "libSystem.tbd").read_text(encoding="utf-8")  # type: ignore[union-attr,arg-type]
    lists = re.findall(r"- targets:\s*\[([^\]]*)\]\s*symbols:\s*\[([^\]]*)\]", text)
    return {name.strip(" '\"\n") for targets, names in lists if "arm64e-macos" in targets for name in names.split(",")}
