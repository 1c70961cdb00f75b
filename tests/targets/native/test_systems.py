"""Libraries for other systems, linked here: their format, what they show and what they need of the system."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.plan import plan_of_kernels
from cupola.runtime.errors import OptionError
from cupola.targets.registry import get_target, get_targets
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import rms_norm
from tests.targets.native.inspection import inspect_elf, inspect_mach_o, inspect_pe

NAMES = ("abi", "run", "run_calls", "set_threads", "set_cores", "set_power_saver", "share_turn", "workspace_bytes", "kernel_rms_norm_576")
OURS = {f"cupola_{name}" for name in NAMES}


def build(name: str, folder: Path) -> Path:
    target = get_target(name)
    planned, file = plan_memory(lower_case(rms_norm(SMOLLM2, target), target)), folder / f"lib{target.library_suffix}"
    build_library(planned, plan_of_kernels(planned), target, file)
    assert list(folder.iterdir()) == [file]
    return file


@pytest.mark.parametrize("name", ["cpu:i8mm@linux", "cpu:dotprod@linux", "cpu:dotprod@android", "cpu:riscv64@linux"])
def test_elf(name: str, tmp_path: Path) -> None:
    inspect_elf(build(name, tmp_path), OURS, is_android=name.endswith("@android"))


@pytest.mark.parametrize("name", ["cpu:apple-m1@macos", "cpu:dotprod@macos"])
def test_mach_o(name: str, tmp_path: Path) -> None:
    inspect_mach_o(build(name, tmp_path), OURS)


def test_pe(tmp_path: Path) -> None:
    inspect_pe(build("cpu:avx2@windows", tmp_path), OURS)


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
