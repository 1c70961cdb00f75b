"""The specials of WebGPU: the text of shaders, memory by addresses that are none, and GPUs that lack something."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from cupola.compiler.native_function import NativeKernels, compile_kernels_alone
from cupola.runtime.errors import EngineError, UnsupportedError
from cupola.runtime.wgpu_native import find_library, find_resources, has_adapter
from cupola.targets.emit import Buffer, argument, prim_func
from cupola.targets.gpu.emit import blocks, for_gpu
from cupola.targets.gpu.lowering import split
from cupola.targets.registry import get_target
from cupola.targets.webgpu import build
from cupola.targets.webgpu.narrow import narrow
from cupola.targets.webgpu.shaders import write_shaders

pytestmark = pytest.mark.skipif(find_resources() is None, reason="wgpu-native is not installed: pip install 'cupola[webgpu]'")
needs_gpu = pytest.mark.skipif(not has_adapter(), reason="there is no Vulkan here: make vulkan")


def kernel(body: Callable[[Buffer, Buffer, Any], None], dtype: str = "float32") -> tvm.IRModule:
    """A kernel `k` of x and out, [n] each, over what a thread does for an element."""

    def write() -> None:
        n = T.int64()
        x, out = argument("x", (n,), dtype), argument("out", (n,), dtype)
        with blocks(n, threads=32) as (i, lane), T.If(lane == T.int64(0)), T.Then():
            body(x, out, i)

    return tvm.IRModule({"k": prim_func(write)})


def copied(x: Buffer, out: Buffer, i: Any) -> None:
    T.buffer_store(out, x[i], [i])


def shader(mod: tvm.IRModule) -> str:
    target = get_target("webgpu").tvm
    (text,) = write_shaders(split(mod, target, [narrow]).device, target).values()
    return text


def compiled(mod: tvm.IRModule) -> NativeKernels:
    return compile_kernels_alone(mod, get_target("webgpu"))


@needs_gpu
@pytest.mark.parametrize("number", [1 / 3, 1.0e-38, -np.inf, np.inf, np.nan])
def test_numbers_keep_all_their_bits(number: float) -> None:
    x = np.zeros(3, np.float32)
    compiled(kernel(lambda x, out, i: T.buffer_store(out, T.float32(number), [i])))("k", x.copy(), x)
    np.testing.assert_array_equal(x, np.float32(number))


@needs_gpu
def test_remainders_of_negative_numbers_are_those_of_64_bits() -> None:
    """TVM finds the sign of 64 bits by a shift that 32 bits do not have."""

    def put(x: Buffer, out: Buffer, i: Any) -> None:
        held = T.alloc_buffer((1,), "int64", scope="local")
        T.buffer_store(held, T.cast(x[i], "int64"), [0])
        T.buffer_store(out, T.cast(held[0] // T.int64(7) * T.int64(100) + held[0] % T.int64(7), "int32"), [i])

    x, out = np.arange(-20, 20, dtype=np.int32), np.zeros(40, np.int32)
    compiled(kernel(put, "int32"))("k", x, out)
    np.testing.assert_array_equal(out, x // 7 * 100 + x % 7)


@needs_gpu
def test_more_blocks_than_one_axis_has() -> None:
    x = np.arange(70_000, dtype=np.float32)
    out = np.zeros_like(x)
    compiled(kernel(copied))("k", x, out)
    np.testing.assert_array_equal(out, x)


def test_tensors_of_floats_may_all_be_written_to() -> None:
    assert "var<storage, read_write> x_ptr" in shader(kernel(copied))
    assert "var<storage, read> x_ptr" in shader(kernel(copied, "int32"))  # only such a length is the same for all threads to a compiler


@pytest.mark.parametrize("dtype", ["int8", "int64"])
def test_a_tensor_that_wgsl_has_no_type_for_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(UnsupportedError, match=f"target webgpu: the kernel k has a tensor of {dtype}, which WGSL has no type for"):
        compiled(kernel(copied, dtype))


def test_writing_bfloat16_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="target webgpu: a kernel writes out in bfloat16, which WGSL has no type for"):
        compiled(kernel(copied, "bfloat16"))


def test_a_tensor_that_is_given_twice_is_one_parameter() -> None:
    from tvm import relax

    from cupola.targets.webgpu.merge import merging

    mod = kernel(copied)
    builder, n = relax.BlockBuilder(), tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([n], "float32"))

    def rule(call: relax.Call, builder: relax.BlockBuilder) -> relax.Call:
        return relax.op.call_tir(builder.add_func(mod["k"], "k"), relax.Tuple([x, x]), out_ty=x.ty)

    with builder.function("main", [x]):
        lowered = merging(for_gpu(rule, build.GPU))(None, builder)
        builder.emit_func_output(builder.emit(lowered))
    assert [len(builder.get()[lowered.args[0]].params), len(lowered.args[1].fields)] == [1, 1]


class Memory:
    """The memory of a library's device."""

    def __init__(self) -> None:
        self.library = compiled(kernel(copied)).library
        self.library.cupola_allocate.restype = ctypes.c_void_p

    def allocate(self, size: int) -> int:
        return self.library.cupola_allocate(ctypes.c_int64(size)) or 0

    def copy(self, to: int, source: int, size: int) -> str:
        """The error, "" if there was none."""
        failed = self.library.cupola_copy(ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_int64(size))
        return self.library.cupola_error().decode() if failed else ""


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory()


@needs_gpu
def test_bytes_come_back(memory: Memory) -> None:
    """Within one buffer too, and where the last word is not whole."""
    given, found = np.arange(103, dtype=np.uint8), np.zeros(103, np.uint8)
    place, other = memory.allocate(103), memory.allocate(200)
    assert memory.copy(place, given.ctypes.data, 103) == "" and memory.copy(place + 40, place + 8, 12) == ""
    assert memory.copy(other, place, 100) == "" and memory.copy(found.ctypes.data, other, 100) == ""
    given[40:52] = given[8:20]
    np.testing.assert_array_equal(found[:100], given[:100])
    assert memory.copy(found.ctypes.data, place, 103) == ""
    np.testing.assert_array_equal(found, given)
    assert memory.library.cupola_clear(ctypes.c_void_p(place), ctypes.c_int64(8)) == 0
    assert memory.copy(found.ctypes.data, place, 103) == "" and found[:9].tolist() == [0] * 8 + [8]


@needs_gpu
def test_what_webgpu_does_not_copy_is_told(memory: Memory) -> None:
    host, place = np.zeros(64, np.uint8), memory.allocate(64)
    for to, size in ((place + 2, 4), (place, 6), (place + 32, 36)):
        assert "whole words" in memory.copy(to, host.ctypes.data, size)
    memory.library.cupola_free(ctypes.c_void_p(place))
    assert "freed" in memory.copy(place, host.ctypes.data, 4)
    assert memory.allocate(1 << 45) == 0
    assert "one tensor of this GPU has at most" in memory.library.cupola_error().decode()


LACKING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include "wgpu.h"
#if defined(NO_F16)
WGPUBool wgpuAdapterHasFeature(WGPUAdapter adapter, WGPUFeatureName feature) { return 0; }
#elif defined(NO_ADAPTER)
WGPUFuture wgpuInstanceRequestAdapter(WGPUInstance instance, const WGPURequestAdapterOptions *options,
                                      WGPURequestAdapterCallbackInfo info) {
  info.callback(WGPURequestAdapterStatus_Unavailable, 0, (WGPUStringView){"none", 4}, info.userdata1, info.userdata2);
  return (WGPUFuture){0};
}
#else
WGPUStatus wgpuAdapterGetLimits(WGPUAdapter adapter, WGPULimits *limits) {
  WGPUStatus (*next)(WGPUAdapter, WGPULimits *) = (__typeof__(next))dlsym(dlopen(LIBRARY, RTLD_NOW), "wgpuAdapterGetLimits");
  const WGPUStatus status = next(adapter, limits);
#ifdef FEW_TENSORS
  limits->maxStorageBuffersPerShaderStage = 1;
#else
  limits->minStorageBufferOffsetAlignment = 256;
#endif
  return status;
}
#endif
"""


@needs_gpu
@pytest.mark.parametrize(
    ("lack", "message"),
    [
        ("NO_F16", r"this GPU has no float16 \(WebGPU's shader-f16\); compile with --quant f32"),
        ("NO_ADAPTER", "there is no GPU that Vulkan, Metal or Direct3D 12 drives: none"),
        ("FEW_TENSORS", "this GPU's kernels take 1 tensors, and a kernel of the model 2"),
        ("ALIGNMENT", "this GPU's tensors begin at multiples of more than 64 bytes"),
    ],
)
def test_a_gpu_that_lacks_something_is_refused(lack: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a library in front of wgpu-native's, which says so."""
    library, folder, source, file = find_library(), find_resources(), tmp_path / "lacking.c", tmp_path / "lacking.so"
    assert library is not None
    source.write_text(LACKING)
    defined = [f"-D{lack}", f'-DLIBRARY="{library}"', f"-I{folder}"]
    command = ["cc", "-shared", "-fPIC", *defined, "-o", str(file), str(source), "-Wl,--no-as-needed", library]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("WGPU_LIB_PATH", str(file))
    with pytest.raises(EngineError, match=message):
        compiled(kernel(copied, "float16"))


def test_without_wgpu_native_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    mod = kernel(copied)
    with monkeypatch.context() as patched:
        patched.setattr(build, "find_resources", lambda: None)
        with pytest.raises(UnsupportedError, match=r"target webgpu: needs the headers of wgpu-native \(`pip install 'cupola\[webgpu\]'`\)"):
            get_target("webgpu")
    monkeypatch.setenv("WGPU_LIB_PATH", "/nowhere/libwgpu_native.so")
    with pytest.raises(EngineError, match="webgpu is no device of this machine: there is no wgpu-native: /nowhere"):
        compiled(mod)
