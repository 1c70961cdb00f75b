"""Libraries for macOS, built on any machine: what is in them, and what is refused. `tests/targets/softgpu` runs the same kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tvm
from tvm.tirx.script import builder as T

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.plan import plan_of_kernels
from cupola.runtime.errors import UnsupportedError
from cupola.targets.base import Target
from cupola.targets.emit import argument, prim_func
from cupola.targets.gpu.emit import blocks, shared, synchronize
from cupola.targets.metal import build
from cupola.targets.registry import get_target, list_targets
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import rms_norm
from tests.targets.metal.mach_o import ARM64, DYLIB, read_dylib

FUNCTIONS = """abi run run_calls set_threads workspace_bytes open error allocate free copy clear memory synchronize""".split()


@pytest.fixture(scope="module")
def target() -> Target:
    return get_target("metal")


def test_a_library_is_a_signed_dylib_that_needs_the_system_alone(target: Target, tmp_path: Path) -> None:
    planned = plan_memory(lower_case(rms_norm(SMOLLM2, target), target))
    build_library(planned, plan_of_kernels(planned), target, tmp_path / "lib.so")
    found = read_dylib(tmp_path / "lib.so")
    assert (found.processor, found.kind, found.system, found.is_signed) == (ARM64, DYLIB, (13, 0), True)
    assert found.libraries == ("/usr/lib/libSystem.B.dylib",)
    assert not Path(found.name).is_absolute()
    ours = {f"_cupola_{name}" for name in [*FUNCTIONS, "kernel_rms_norm_576"]}
    assert {name for name in found.defined if name.startswith("_cupola")} == ours
    assert {"_dlopen", "_dlsym"} <= found.wanted
    assert not {name for name in found.wanted if "objc" in name or "MTL" in name}  # they are found when it is opened
    assert b"kernel void rms_norm_576_kernel(" in (tmp_path / "lib.so").read_bytes()


def test_it_runs_on_macs_of_apple_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in list_targets() if entry.name == "metal")
    for platform, machine, runs in (("darwin", "arm64", True), ("darwin", "x86_64", False), ("linux", "aarch64", False)):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr("platform.machine", lambda: machine)
        assert entry.runs_here() == runs


def refusal(kernel: tvm.tirx.PrimFunc, target: Target, folder: Path) -> str:
    mod = tvm.IRModule({"kernel": kernel})
    with pytest.raises(UnsupportedError) as raised:
        build_library(mod, plan_of_kernels(mod), target, folder / "lib.so")
    return str(raised.value)


def test_more_tensors_than_a_kernel_may_have_are_refused(target: Target, tmp_path: Path) -> None:
    def body() -> None:
        tensors = [argument(f"x{i}", (32,), "float32") for i in range(31)]
        with blocks(1, threads=32) as (_, lane):
            T.buffer_store(tensors[0], sum((t[lane] for t in tensors[1:]), T.float32(0)), [lane])

    assert "the kernel kernel_kernel takes 31 tensors, of at most 30" in refusal(prim_func(body), target, tmp_path)


@pytest.mark.parametrize(("count", "fits"), [(8192, True), (8193, False)])
def test_more_shared_memory_than_a_group_may_have_is_refused(count: int, fits: bool, target: Target, tmp_path: Path) -> None:
    def body() -> None:
        x = argument("x", (32,), "float32")
        with blocks(1, threads=32) as (_, lane):
            held = shared(count)
            T.buffer_store(held, x[lane], [lane])
            synchronize()
            T.buffer_store(x, held[31 - lane], [lane])

    if fits:
        mod = tvm.IRModule({"kernel": prim_func(body)})
        build_library(mod, plan_of_kernels(mod), target, tmp_path / "lib.so")
    else:
        assert "shares 32772 bytes among a group's threads, of at most 32768" in refusal(prim_func(body), target, tmp_path)


def test_numbers_that_the_runtime_does_not_pass_are_refused(target: Target, tmp_path: Path) -> None:
    def body() -> None:
        x, number = argument("x", (32,), "float32"), T.arg("number", T.uint8())
        with blocks(1, threads=32) as (_, lane):
            T.buffer_store(x, T.cast(number, "float32"), [lane])

    assert "takes a number of type uint8" in refusal(prim_func(body), target, tmp_path)


def test_without_a_compiler_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"target metal: needs a compiler for macOS \(`pip install ziglang`"):
        build.link_macos([], [], tmp_path / "lib.so")
