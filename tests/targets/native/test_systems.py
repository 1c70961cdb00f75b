"""Libraries for other systems, linked here: their format, what they show and what they need of the system."""

from __future__ import annotations

import re
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.plan import plan_of_kernels
from cupola.runtime.errors import OptionError
from cupola.targets.registry import get_target, get_targets
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import rms_norm
from tests.targets.metal.mach_o import ARM64, DYLIB, read_dylib

NAMES = ("abi", "run", "run_calls", "set_threads", "set_cores", "set_power_saver", "workspace_bytes", "kernel_rms_norm_576")
OURS = {f"cupola_{name}" for name in NAMES}
PAGE = 0x4000
BIONIC = Path("targets/native/bionic")


def build(name: str, folder: Path) -> Path:
    target = get_target(name)
    planned, file = plan_memory(lower_case(rms_norm(SMOLLM2, target), target)), folder / f"lib{target.library_suffix}"
    build_library(planned, plan_of_kernels(planned), target, file)
    assert list(folder.iterdir()) == [file]
    return file


def read_elf(*arguments: str) -> str:
    return subprocess.run(["readelf", "-W", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["cpu:dotprod@linux", "cpu:dotprod@android", "cpu:riscv64@linux"])
def test_elf(name: str, tmp_path: Path) -> None:
    file = str(build(name, tmp_path))
    needed = {line.split("[")[1].rstrip("]") for line in read_elf("-d", file).splitlines() if "(NEEDED)" in line}
    symbols = [line.split() for line in read_elf("--dyn-syms", file).splitlines() if line.split()[4:5] in (["GLOBAL"], ["WEAK"])]
    assert {words[7] for words in symbols if words[6] != "UND"} == OURS
    if not name.endswith("@android"):
        assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1"}
        return
    known = {line for library in ("libc", "libm") for line in (BIONIC / f"{library}.symbols").read_text().split()}
    assert needed and needed <= {"libc.so", "libm.so"}
    assert {words[7] for words in symbols if words[6] == "UND"} <= known  # without versions
    segments = [line.split() for line in read_elf("-l", file).splitlines() if line.split()[:1] == ["LOAD"]]
    assert segments and all(int(words[-1], 16) % PAGE == 0 for words in segments)


def of_macos() -> set[str]:
    """Symbols that libSystem and what it re-exports have on Arm, by the list that ziglang brings (Apple's text-based stubs)."""
    text = Path(find_spec("ziglang").origin).with_name("lib").joinpath("libc", "darwin", "libSystem.tbd").read_text(encoding="utf-8")  # type: ignore[union-attr,arg-type]
    lists = re.findall(r"- targets:\s*\[([^\]]*)\]\s*symbols:\s*\[([^\]]*)\]", text)
    return {name.strip(" '\"\n") for targets, names in lists if "arm64e-macos" in targets for name in names.split(",")}


@pytest.mark.parametrize("name", ["cpu:apple-m1@macos", "cpu:dotprod@macos"])
def test_mach_o(name: str, tmp_path: Path) -> None:
    found = read_dylib(build(name, tmp_path))
    assert (found.processor, found.kind, found.system, found.is_signed) == (ARM64, DYLIB, (13, 0), True)
    assert found.libraries == ("/usr/lib/libSystem.B.dylib",)
    assert found.wanted and found.wanted <= of_macos()
    assert {name for name in found.defined if "cupola" in name or "TVM" in name} == {f"_{name}" for name in OURS}


def test_pe(tmp_path: Path) -> None:
    data = build("cpu:avx2@windows", tmp_path).read_bytes()
    header = struct.unpack_from("<I", data, 0x3C)[0]
    assert (data[:2], data[header : header + 4], struct.unpack_from("<H", data, header + 4)[0]) == (b"MZ", b"PE\0\0", 0x8664)
    assert all(name.encode() + b"\0" in data for name in OURS)
    assert b"cupola_code_" not in data and b"__TVMBackend" not in data


def test_names_of_systems() -> None:
    specs = [target.spec for target in get_targets("cpu:dotprod,cpu:avx2@windows", "linux,android")]
    assert [spec.name for spec in specs] == ["cpu:dotprod", "cpu:dotprod@android", "cpu:avx2@windows"]
    for name, problem in (
        ("cpu:riscv64@macos", "is not a system of cpu:riscv64"),
        ("cpu:avx2@beos", "is not a system"),
        ("cpu@macos", "can't"),
    ):
        with pytest.raises(OptionError, match=problem):
            get_target(name)
