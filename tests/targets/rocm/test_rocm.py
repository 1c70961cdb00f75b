"""Code objects for AMD's GPUs, the libraries that carry them, and what can be said of `rocm.h` without such a GPU."""

from __future__ import annotations

import ctypes
import math
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cupola.compiler.build import build_library, plan_memory
from cupola.compiler.plan import plan_of_kernels
from cupola.runtime.device.accelerator import open_device
from cupola.runtime.environment import interpreter
from cupola.runtime.errors import OptionError, UnsupportedError
from cupola.targets.registry import get_target
from cupola.targets.rocm import build
from cupola.targets.rocm.build import compile_rocm, link_rocm
from cupola.targets.rocm.ledger import kernel_figures
from cupola.targets.rocm.target import ARCHITECTURES
from cupola.targets.testing.case import SMOLLM2, lower_case
from cupola.targets.testing.catalogue import rms_norm
from tests.targets.harness import C_LIBRARY, needed_libraries

MACHINES = {"gfx942": 0x04C, "gfx1100": 0x041}  # in an ELF file's flags (LLVM's user guide for AMDGPU)
WAVEFRONTS = {"gfx942": 64, "gfx1100": 32}
REVERSED = """extern "C" __global__ void __launch_bounds__(256) kernel(float *x) {
  __shared__ float held[256];
  held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = held[255 - threadIdx.x];
}
"""


erf = np.vectorize(math.erf, otypes=["float64"])


def one_kernel(body: str) -> str:
    return (
        f'extern "C" __global__ void __launch_bounds__(64) kernel(float *at) {{ float x = at[threadIdx.x]; {body} at[threadIdx.x] = x; }}\n'
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_code_object_is_for_its_architecture(architecture: str, tmp_path: Path) -> None:
    assembly = compile_rocm(REVERSED, architecture, tmp_path)
    data = link_rocm(assembly, architecture).read_bytes()
    [kind, machine] = struct.unpack_from("<HH", data, 16)
    [flags] = struct.unpack_from("<I", data, 48)
    hsa, version_5 = data[7], data[8]
    assert (kind, machine, hsa, version_5, flags & 0xFF) == (3, 224, 64, 3, MACHINES[architecture])
    assert b"\0kernel.kd\0" in data
    figures = kernel_figures(assembly.read_text())["kernel"]
    assert (figures["shared_bytes"], figures["wavefront_size"]) == (1024, WAVEFRONTS[architecture])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_barrier_waits_for_what_was_written(architecture: str, tmp_path: Path) -> None:
    text = compile_rocm(REVERSED, architecture, tmp_path).read_text()
    assert re.search(r"ds_(write|store)_b32.*?s_waitcnt lgkmcnt\(0\).*?s_barrier.*?ds_(read|load)_b32", text, re.DOTALL)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_library_needs_the_c_library_alone_and_says_what_it_misses(architecture: str, tmp_path: Path) -> None:
    target = get_target(f"rocm:{architecture}")
    planned = plan_memory(lower_case(rms_norm(SMOLLM2, target), target))
    build_library(planned, plan_of_kernels(planned), target, tmp_path / "lib.so")
    assert needed_libraries(tmp_path / "lib.so") <= C_LIBRARY
    if not Path("/dev/kfd").exists():
        with pytest.raises(OptionError, match=rf"rocm:{architecture}: there is no AMD driver: libamdhip64\.so"):
            open_device(ctypes.CDLL(str(tmp_path / "lib.so")), target.spec.name)


def test_a_driver_that_lacks_a_function_is_told(tmp_path: Path) -> None:
    """A process with an old driver's library in its path, which has but one function."""
    target = get_target("rocm:gfx1100")
    planned = plan_memory(lower_case(rms_norm(SMOLLM2, target), target))
    build_library(planned, plan_of_kernels(planned), target, tmp_path / "lib.so")
    (tmp_path / "old.c").write_text("int hipInit(unsigned flags) { return (int)flags; }")
    old = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "libamdhip64.so.7"), str(tmp_path / "old.c")]
    subprocess.run([*interpreter(), "-m", "ziglang", *old], check=True)
    code = f"""
import ctypes
from pathlib import Path
from cupola.runtime.device.accelerator import open_device
open_device(ctypes.CDLL({str(tmp_path / "lib.so")!r}), "rocm:gfx1100")
"""
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    said = subprocess.run([*interpreter(), "-c", code], capture_output=True, text=True, check=False, env=environment).stderr
    assert "AMD's driver lacks hipDrvGetErrorString; a later one has it" in said


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("x = powf(x, 3);", "undefined hidden symbol: powf"),
        ('asm volatile("bar.sync 0;");', "invalid instruction"),
        ("x = __ballot_sync(~0u, x > 0);", "undeclared identifier '__ballot_sync'"),
    ],
    ids=["function", "PTX", "collective"],
)
def test_what_the_header_does_not_know_is_refused_by_name(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"target rocm:gfx942: the compiler failed: .*{message}"):
        link_rocm(compile_rocm(one_kernel(body), "gfx942", tmp_path), "gfx942")


def test_without_a_compiler_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"target rocm:gfx942: needs clang \(`pip install 'cupola\[rocm\]'`"):
        compile_rocm(REVERSED, "gfx942", tmp_path)


def on_this_cpu(source: str, folder: Path) -> ctypes.CDLL:
    """A library of C++ that includes the headers of AMD's kernels."""
    (folder / "on_cpu.cpp").write_text(source)
    flags = ["-x", "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-w", "-shared", "-fPIC", f"-I{Path(build.__file__).parent}"]
    march = ["-march=x86_64_v3"] if build.here() == "x86_64" else []
    command = [*interpreter(), "-m", "ziglang", "cc", *flags, *march, str(folder / "on_cpu.cpp"), "-o", str(folder / "on_cpu.so"), "-lm"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "on_cpu.so"))


@pytest.mark.parametrize(
    ("name", "reference", "low", "high"),
    [
        ("tanhf", np.tanh, -12, 12),
        ("erff", erf, -6, 6),
        ("sinf", np.sin, -100, 100),
        ("cosf", np.cos, -100, 100),
        ("sinf", np.sin, 1e5, 2e5),
        ("cosf", np.cos, 1e8, 1e8 + 1e6),
        ("tanhf", np.tanh, -1e-3, 1e-3),
        ("erff", erf, -1e-3, 1e-3),
    ],
)
def test_functions_that_the_header_brings(
    name: str, reference: Callable[[np.ndarray], np.ndarray], low: float, high: float, tmp_path: Path
) -> None:
    """Within three units in the last place."""
    library = on_this_cpu(
        f"""
#pragma clang diagnostic ignored "-Wbuiltin-requires-header"
#include "functions.h"
extern "C" void apply(const float *x, float *y, int n) {{ for (int i = 0; i < n; ++i) y[i] = {name}(x[i]); }}
""",
        tmp_path,
    )
    x = np.linspace(low, high, 200_001).astype(np.float32)
    y = np.empty_like(x)
    library.apply(*(array.ctypes.data_as(ctypes.c_void_p) for array in (x, y)), x.size)
    exact = np.asarray(reference(x.astype(np.float64)))
    assert (np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32))).max() <= 3
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    got = np.empty_like(special)
    library.apply(*(array.ctypes.data_as(ctypes.c_void_p) for array in (special, got)), special.size)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, np.asarray(reference(special.astype(np.float64)), np.float32))
