"""The faults of kernels that `softgpu.h` finds, and what it lets pass."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cupola.runtime.environment import interpreter
from cupola.runtime.errors import UnsupportedError
from cupola.targets.softgpu.translate import translate
from tests.targets.softgpu.kernel import Kernel

pytestmark = pytest.mark.by_turns  # whatever kernels need of it, their tests show each time

REVERSED = """
  __shared__ float held[64];
  held[threadIdx.x] = x[threadIdx.x];
  %s
  x[threadIdx.x] = held[63 - threadIdx.x];
"""


def in_every_order(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The results of a kernel for 0, 1, …, its threads first to last, last to first and shuffled."""
    results = []
    for seed in ("0", "1", "7"):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        x = np.arange(64, dtype=np.float32)
        assert kernel(x) == ""
        results.append(x)
    return results


def test_threads_wait_at_a_barrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for x in in_every_order(Kernel(REVERSED % "__syncthreads();", tmp_path), monkeypatch):
        np.testing.assert_array_equal(x, np.arange(64)[::-1])


def test_a_missing_barrier_shows_in_every_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for x in in_every_order(Kernel(REVERSED % "", tmp_path), monkeypatch):
        assert np.isnan(x).any()  # what nobody has written yet


def test_a_missing_barrier_shows_behind_collectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warp writes soon what the other reads late: in turns, that looks as if there was a barrier."""
    body = """
  __shared__ float held[32];
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 3; ++i) __syncwarp();
  if (threadIdx.x / 32 == WRITER) held[lane] = lane;
  for (int i = 0; i < 9; ++i) __syncwarp();
  if (threadIdx.x / 32 != WRITER) x[lane] = held[lane];"""
    for writer, seed in ((0, "1"), (1, "0")):
        monkeypatch.setenv("SOFTGPU_SEED", seed)
        (folder := tmp_path / seed).mkdir()
        x = np.zeros(64, np.float32)
        assert Kernel(body.replace("WRITER", str(writer)), folder)(x) == ""
        assert np.isnan(x[:32]).all()


@pytest.mark.parametrize(("kind", "size"), [("half2", 4), ("float2", 8), ("uint4", 16)])
@pytest.mark.parametrize("body", ["*(V *)at = *(V *)x;", "V v = *(V *)at; *(V *)x = v;"], ids=["store", "load"])
def test_a_misaligned_vector_is_told(body: str, kind: str, size: int, tmp_path: Path) -> None:
    body = f"char *at = (char *)x + {size} + offset[threadIdx.x];\n{body}"
    kernel = Kernel(body, tmp_path, "float *x, int *offset", f"using V = {kind};")
    x, offsets = np.zeros(64, np.float32), np.zeros(64, np.int32)
    assert kernel(x, offsets) == ""
    offsets[5] = size // 2
    assert f"must lie at a multiple of {size} bytes" in kernel(x, offsets)


def test_lanes_exchange_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "for (int d = 16; d; d /= 2) x[threadIdx.x] += __shfl_xor_sync(0xffffffffu, x[threadIdx.x], d);"
    for x in in_every_order(Kernel(body, tmp_path), monkeypatch):
        np.testing.assert_array_equal(x, np.repeat(np.arange(64.0).reshape(2, 32).sum(1), 32))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 40) __syncthreads();", "__syncthreads"),
        ("if (threadIdx.x == 5) return;\n__syncthreads();", "__syncthreads"),
        ("x[threadIdx.x] = __shfl_sync(1u, x[threadIdx.x], 0);", "leaves out the lane that calls it"),
        ("volatile char much[80000]; for (int i = 0; i < 80000; ++i) much[i] = 1;", "more than 64 KiB of stack"),
    ],
    ids=["divergent barrier", "early return", "wrong mask", "too much stack"],
)
def test_a_broken_kernel_is_told(body: str, message: str, tmp_path: Path) -> None:
    found = Kernel(body, tmp_path)(np.zeros(64, np.float32))
    assert "kernel: " in found and message in found


def test_more_threads_than_a_block_may_have(tmp_path: Path) -> None:
    kernel = Kernel("x[0] = 1;", tmp_path)
    assert "more than 1024 threads in a block" in kernel(np.zeros(1, np.float32), threads=1025)
    assert "more than 227 KiB of shared memory" in kernel(np.zeros(1, np.float32), shared=1 << 20)


def test_memory_ends_at_a_page_that_nobody_may_touch(tmp_path: Path) -> None:
    """So that reading behind a tensor ends the process, here a child."""
    kernel = Kernel("x[threadIdx.x] = x[threadIdx.x + 1];", tmp_path)
    code = f"""
import ctypes
library = ctypes.CDLL({str(kernel.file)!r})
library.cupola_allocate.restype, library.cupola_allocate.argtypes = ctypes.c_void_p, [ctypes.c_int64]
assert library.cupola_open() == 0
def launch(size, threads):
    memory = library.cupola_allocate(size)
    pointer = ctypes.c_void_p(memory)
    return library.launch((ctypes.c_void_p * 1)(ctypes.addressof(pointer)), (ctypes.c_int64 * 6)(1, 1, 1, threads, 1, 1), ctypes.c_int64(0))
assert launch(320, 64) == 0
print("inside", flush=True)
launch(256, 64)
"""
    done = subprocess.run([interpreter()[0], "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("inside\n", -signal.SIGSEGV)


def test_an_instruction_runs(tmp_path: Path) -> None:
    body = """int sum;
asm volatile ("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(0x01ff02fe), "r"((0x80, 0x030201ff)), "r"(int(x[threadIdx.x])));
x[threadIdx.x] = sum;"""
    x = np.full(64, 7, np.float32)
    assert Kernel(body, tmp_path)(x) == ""
    np.testing.assert_array_equal(x, 7 + 1 * 3 - 1 * 2 + 2 * 1 - 2 * 255)


def test_an_unknown_instruction_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"has no C\+\+ for the instruction bar.sync 0 \(add it"):
        translate('__global__ void kernel() { asm volatile("bar.sync 0;"); }', ["kernel"])
