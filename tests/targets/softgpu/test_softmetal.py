"""Metal Shading Language on the fibers, and `metal.c` on a stand-in for Metal: the faults that are found, and what it lets pass."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cupola.runtime.environment import interpreter
from cupola.runtime.errors import UnsupportedError
from cupola.targets.gpu.metal import HEAD, RUNTIME
from cupola.targets.softgpu.build import link
from cupola.targets.softgpu.build_metal import DRIVER
from cupola.targets.softgpu.translate_metal import translate_metal

pytestmark = pytest.mark.by_turns  # whatever kernels need of it, their tests show each time

SIGNATURE = """
struct numbers_t { long step; int last[2]; };
kernel void kernel_1(device float* x [[ buffer(0) ]], device const float* y [[buffer(1)]], constant numbers_t& numbers [[ buffer(2) ]],
  uint2 group [[threadgroup_position_in_grid]], uint2 place [[thread_position_in_threadgroup]]) {
  const uint t = place.x;
"""
LAUNCH = """
#include <stdint.h>
void cupola_begin(void);
void cupola_end(void);
int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes);
const int32_t cupola_num_symbols = 1;
const char *const cupola_symbols[] = {"kernel_1"}, *const cupola_parameters[] = {"pp84"};
const char cupola_image[] = %s;
__attribute__((visibility("default"))) int32_t launch(float *x, float *y, int64_t step, int32_t last, const int64_t *extents, int times) {
  void *arguments[] = {&x, &y, &step, &last};
  int32_t code = 0;
  cupola_begin();
  while (!code && times--) code = cupola_launch(0, arguments, extents, 0);
  cupola_end();
  return code;
}
"""
REVERSED = """
  threadgroup float held[64];
  held[t] = x[t];
  %s
  x[t] = held[63 - t];
"""
TWO_TYPES = "uint a [[threadgroup_position_in_grid]], uint2 b [[thread_position_in_threadgroup]]"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


class Kernel:
    """A kernel over two tensors and two numbers, by its body in Metal Shading Language, and memory of its device."""

    def __init__(self, body: str, folder: Path) -> None:
        source = f"{HEAD}{SIGNATURE}{body}\n}}\n"
        sources = [folder / "kernels.cpp", folder / "launches.c", DRIVER, RUNTIME]
        sources[0].write_text(translate_metal(source))
        sources[1].write_text(LAUNCH % json.dumps(source))
        self.file = folder / "lib.so"
        link([], sources, self.file)
        self.library = open_library(self.file)

    def tensor(self, array: np.ndarray) -> int:
        """The address of a copy."""
        address = self.library.cupola_allocate(array.nbytes)
        assert self.library.cupola_copy(address, array.ctypes.data, array.nbytes) == 0
        return address

    def read(self, address: int, count: int) -> np.ndarray:
        array = np.empty(count, np.float32)
        assert self.library.cupola_copy(array.ctypes.data, address, array.nbytes) == 0
        return array

    def launch(
        self, x: int, y: int, *, step: int = 0, last: int = 0, groups: tuple[int, int] = (1, 1), threads: int = 64, times: int = 1
    ) -> int:
        return self.library.launch(x, y, step, last, (ctypes.c_int64 * 6)(*groups, 1, threads, 1, 1), times)

    def error(self) -> str:
        return self.library.cupola_error().decode()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Launches 64 threads on a copy of x, of 64 elements, and gives what is there then."""
        address, zeros = self.tensor(x), self.tensor(np.zeros(4, np.float32))
        assert self.launch(address, zeros) == 0, self.error()
        return self.read(address, 64)


def open_library(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    library.cupola_error.restype = ctypes.c_char_p
    library.cupola_allocate.restype, library.cupola_allocate.argtypes = ctypes.c_void_p, [ctypes.c_int64]
    library.cupola_free.argtypes = [ctypes.c_void_p]
    library.cupola_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    library.cupola_clear.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int]
    assert library.cupola_open() == 0, library.cupola_error()
    return library


def test_arguments_and_places_are_what_attributes_say(tmp_path: Path) -> None:
    kernel = Kernel("x[(group.y * 3 + group.x) * 64 + t] = y[1] * t + numbers.step * group.y + numbers.last[0];", tmp_path)
    x, y = kernel.tensor(np.zeros(6 * 64 + 8, np.float32)), kernel.tensor(np.arange(4, dtype=np.float32))
    assert kernel.launch(x + 32, y + 4, step=1 << 33, last=-5, groups=(3, 2)) == 0
    expected = np.stack([2 * np.arange(64.0) + (1 << 33) * (group // 3) - 5 for group in range(6)]).astype(np.float32)
    np.testing.assert_array_equal(kernel.read(x + 32, 6 * 64).reshape(6, 64), expected)
    np.testing.assert_array_equal(kernel.read(x, 8), np.zeros(8))


@pytest.mark.parametrize("seed", ["0", "1", "7"])
def test_threads_wait_at_a_barrier_and_show_when_they_do_not(seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGPU_SEED", seed)
    folders = [tmp_path / name for name in ("right", "wrong")]
    for folder in folders:
        folder.mkdir()
    x = np.arange(64, dtype=np.float32)
    np.testing.assert_array_equal(Kernel(REVERSED % BARRIER, folders[0])(x), x[::-1])
    assert np.isnan(Kernel(REVERSED % "", folders[1])(x)).any()  # what nobody has written yet


def test_lanes_exchange_values_of_32_and_64_bits(tmp_path: Path) -> None:
    body = """
  x[t] = x[t] + simd_shuffle_down(x[t], 1);
  x[t] = x[t] + simd_shuffle_down((long)t << 33, 2) / (1l << 33) + simd_shuffle(x[t], 5);
"""
    lanes = np.arange(64)
    x = lanes + np.where(lanes % 32 < 31, lanes + 1, lanes)
    expected = x + np.where(lanes % 32 < 30, lanes + 2, lanes) + x[lanes // 32 * 32 + 5]
    np.testing.assert_array_equal(Kernel(body, tmp_path)(lanes.astype(np.float32)), expected)


def test_vectors_bits_and_functions(tmp_path: Path) -> None:
    body = """
  const float4 v = *(device const float4*)(x + t / 4 * 4);
  threadgroup_barrier(mem_flags::mem_device);
  const uint2 halves = uint2(as_type<ushort>((half)v[1]), as_type<uint>(v.w));
  x[t] = max(v.x, select(0.0f, exp(v.z * 0.01f), t > 9)) + (float)as_type<half>((ushort)halves.x) + as_type<float>(halves.y);
  x[t] += float2(int2(float2(2.9f)))[1] + half4(1, 2, 3, 4).w;
"""
    x = np.arange(64, dtype=np.float32)
    v = np.repeat(x.reshape(16, 4), 4, axis=0)
    expected = np.maximum(v[:, 0], np.where(x > 9, np.exp(v[:, 2] * np.float32(0.01)), 0)) + v[:, 1] + v[:, 3] + 6
    np.testing.assert_allclose(Kernel(body, tmp_path)(x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("thread float* p = x;", "'float \\*' with an lvalue of type 'device float \\*'"),
        ("device float* p = (device float*)y; threadgroup float* q = p;", "'threadgroup float \\*' with"),
        ("x[t] = metal::simd_shuffle((long)t, 0);", "no matching function"),
        ("numbers.step = 1;", "const-qualified"),
        ("x[t] = erf(x[t]) + imaginary(x[t]);", "undeclared"),
    ],
    ids=["device as thread", "device as threadgroup", "64 bits to Metal's own", "a constant", "no function of Metal's"],
)
def test_what_is_no_metal_does_not_compile(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Kernel(body, tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"if (t < 40) {BARRIER}", "ended while others wait"),
        ("volatile char much[80000]; for (int i = 0; i < 80000; ++i) much[i] = 1;", "64 KiB of stack"),
    ],
    ids=["divergent barrier", "too much stack"],
)
def test_a_launch_that_fails_is_told_by_whoever_waits_for_it(body: str, message: str, tmp_path: Path) -> None:
    kernel = Kernel(body, tmp_path)
    x = kernel.tensor(np.zeros(64, np.float32))
    assert kernel.launch(x, x) == 0  # it has not run yet
    assert kernel.library.cupola_synchronize() != 0
    assert "the device failed: kernel_1: " in kernel.error() and message in kernel.error()
    assert kernel.library.cupola_synchronize() == 0  # it is told once


def test_launches_that_metal_would_not_take_are_refused(tmp_path: Path) -> None:
    kernel = Kernel("x[t] = 1;", tmp_path)
    x, foreign = kernel.tensor(np.zeros(64, np.float32)), np.zeros(64, np.float32)
    assert kernel.launch(x, x, threads=1025) != 0
    assert "kernel_1: more threads in a group than it may have" in kernel.error()
    for address in (foreign.ctypes.data, 0, x + 64 * 4):
        assert kernel.launch(x, address) != 0
        assert "kernel_1: a pointer is into no memory of the device's" in kernel.error()
    kernel.library.cupola_free(x)
    assert kernel.launch(x, x) != 0


def test_steps_leave_no_object_behind_and_memory_lives_until_it_is_used(tmp_path: Path) -> None:
    kernel = Kernel("x[t] += y[t];", tmp_path)
    x, counts = kernel.tensor(np.zeros(64, np.float32)), []
    for _ in range(3):
        y = kernel.tensor(np.ones(64, np.float32))
        for _ in range(2):
            assert kernel.launch(x, y) == 0
        kernel.library.cupola_free(y)
        assert kernel.library.cupola_synchronize() == 0
        counts.append(kernel.library.softmetal_num_objects())
    assert len(set(counts)) == 1
    np.testing.assert_array_equal(kernel.read(x, 64), np.full(64, 6))


def test_of_many_launches_none_is_lost(tmp_path: Path) -> None:
    kernel = Kernel("x[t] = 2 * x[t] - x[t] + y[0];", tmp_path)
    x, y = kernel.tensor(np.zeros(64, np.float32)), kernel.tensor(np.ones(1, np.float32))
    for times in (63, 64, 65, 200):
        assert kernel.library.cupola_clear(x, 256) == 0
        assert kernel.launch(x, y, times=times) == 0
        np.testing.assert_array_equal(kernel.read(x, 64), np.full(64, times))


def test_memory_of_the_device(tmp_path: Path) -> None:
    library, free = Kernel("", tmp_path).library, (ctypes.c_int64 * 2)()
    assert library.cupola_memory(free) == 0
    addresses = [library.cupola_allocate(1000 * i) for i in range(200)]
    assert len(set(addresses)) == 200
    assert library.cupola_clear(addresses[9], 9000) == 0
    assert ctypes.string_at(addresses[9], 9000) == bytes(9000)
    assert library.cupola_allocate(1 << 40) is None
    assert b"Metal gives no memory" in library.cupola_error()
    for address in addresses[::2] + addresses[1::2]:
        library.cupola_free(address)
    now = (ctypes.c_int64 * 2)()
    assert library.cupola_memory(now) == 0
    assert list(now) == list(free)


def test_memory_ends_at_a_page_that_nobody_may_touch(tmp_path: Path) -> None:
    """So that reading behind a tensor ends the process, here a child."""
    kernel = Kernel("x[t] = x[t + numbers.step];", tmp_path)
    code = f"""
from pathlib import Path
from ctypes import c_int64
from tests.targets.softgpu.test_softmetal import open_library
library = open_library(Path({str(kernel.file)!r}))
x = library.cupola_allocate(320)
def run(step):
    assert library.launch(x, x, step, 0, (c_int64 * 6)(1, 1, 1, 64, 1, 1), 1) == 0
    return library.cupola_synchronize()
assert run(16) == 0
print("inside", flush=True)
run(17)
"""
    done = subprocess.run([interpreter()[0], "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("inside\n", -signal.SIGSEGV)


@pytest.mark.parametrize("parameter", ["uint lane [[thread_index_in_quadgroup]]", "device float* x [[buffer(1)]]", "float x", TWO_TYPES])
def test_a_parameter_that_nobody_binds_is_refused_by_name(parameter: str) -> None:
    with pytest.raises(UnsupportedError, match=r"alone has a parameter that is .* \(buffers come in order"):
        translate_metal(f"kernel void alone({parameter}) {{}}")
