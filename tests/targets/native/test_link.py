"""Linking: which compiler is taken, and what is said where there is none or it fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cupola.runtime.errors import UnsupportedError
from cupola.runtime.machine import here
from cupola.targets.native import link
from cupola.targets.native.systems import LINUX

NATIVE = f"{here()}-linux-gnu"
OTHER = "riscv64-linux-gnu"
ARCHITECTURES = {NATIVE: here(), OTHER: "riscv64"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The programs and packages that there are."""
    names = {"gcc", "ziglang"}
    monkeypatch.setattr(link.shutil, "which", lambda name: f"bin/{name}" if name in names else None)
    monkeypatch.setattr(link, "find_spec", lambda name: name if name in names else None)
    return names


def test_the_machines_compiler_comes_first(installed: set[str]) -> None:
    assert link.compiler_for(LINUX, here()) == ["bin/gcc"]
    installed.add("cc")
    assert link.compiler_for(LINUX, here()) == ["bin/cc"]


def test_ziglang_stands_in_and_links_for_other_machines(installed: set[str]) -> None:
    assert link.compiler_for(LINUX, "riscv64")[-5:] == ["-m", "ziglang", "cc", "-target", "riscv64-linux-gnu.2.28"]
    installed.remove("gcc")
    assert link.compiler_for(LINUX, here())[-3:] == ["-m", "ziglang", "cc"]


@pytest.mark.parametrize(
    ("triple", "fix"),
    [(NATIVE, "install gcc or clang, or `pip install ziglang`"), (OTHER, "(`pip install ziglang`)")],
    ids=["own", "other"],
)
def test_without_a_compiler_the_fix_is_named(installed: set[str], triple: str, fix: str) -> None:
    installed.clear()
    with pytest.raises(UnsupportedError, match=f"found no C compiler to link the library for {triple}") as error:
        link.compiler_for(LINUX, ARCHITECTURES[triple])
    assert fix in str(error.value)


def test_what_a_failing_compiler_said_is_told(tmp_path: Path) -> None:
    (tmp_path / "code.c").write_text("#error because\n")
    with pytest.raises(UnsupportedError, match="the linker failed: .*error: .*because"):
        link.link_library(LINUX, here(), [], [tmp_path / "code.c"], tmp_path / "lib.so")
    assert not (tmp_path / "lib.exports").exists()


def test_an_undefined_symbol_is_told(tmp_path: Path) -> None:
    (tmp_path / "code.c").write_text("int missing(void);\nint cupola_run(void) { return missing(); }\n")
    with pytest.raises(UnsupportedError, match="the linker failed: .*undefined.*missing"):
        link.link_library(LINUX, here(), [], [tmp_path / "code.c"], tmp_path / "lib.so")


def test_symbols_of_objects_are_hidden_unless_they_are_ours(tmp_path: Path) -> None:
    code, objects, library = tmp_path / "code.c", tmp_path / "code.o", tmp_path / "lib.so"
    code.write_text("int exp_(void) { return 1; }\nint cupola_kernel_k(void) { return exp_(); }\nint cupola_code_k;\n")
    subprocess.run([*link.compiler_for(LINUX, here()), "-c", "-fPIC", str(code), "-o", str(objects)], check=True)
    link.link_library(LINUX, here(), [objects], [], library)
    shown = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in shown.splitlines()] == ["cupola_kernel_k"]
