"""A kernel of a test's own, in CUDA C++, launched on arrays."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cupola.targets.gpu.cuda import HIP_RUNTIME, RUNTIME
from cupola.targets.softgpu.build import DRIVER, link
from cupola.targets.softgpu.build_rocm import rocm_head
from cupola.targets.softgpu.translate import translate

_LAUNCH = """
#include <stdint.h>
int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes);
const int32_t cupola_num_symbols = 1;
const char *const cupola_symbols[] = {"kernel"};
__attribute__((visibility("default"))) int32_t launch(void **arguments, const int64_t *extents, int64_t shared_bytes) {
  return cupola_launch(0, arguments, extents, shared_bytes);
}
void *softgpu_function(const char *name);
__attribute__((visibility("default"))) void *driver(const char *name) { return softgpu_function(name); }
"""


@dataclass(frozen=True)
class TensorMap:
    """A CUtensorMap, which kernels take as it is; `memory` has its 128 bytes at `address`."""

    address: int
    memory: object


class Kernel:
    """A kernel of its arguments, pointers or tensor maps, and its body; `before` stands before it. It is for NVIDIA's GPUs, or for an
    instruction set of AMD's."""

    def __init__(self, body: str, folder: Path, arguments: str = "float *x", before: str = "", rocm: str = "") -> None:
        sources = [folder / "kernels.cpp", folder / "launches.c", DRIVER, HIP_RUNTIME if rocm else RUNTIME]
        source = f'{before}\nextern "C" __global__ void kernel({arguments}) {{\n{body}\n}}\n'
        sources[0].write_text(translate(source, ["kernel"], rocm_head(rocm)) if rocm else translate(source, ["kernel"]))
        sources[1].write_text(_LAUNCH)
        self.file = folder / "lib.so"
        link([], sources, self.file)
        self.library = ctypes.CDLL(str(self.file))
        self.library.cupola_error.restype = ctypes.c_char_p
        self.library.driver.restype = ctypes.c_void_p
        assert self.library.cupola_open() == 0

    def __call__(self, *given: npt.NDArray[Any] | TensorMap, threads: int = 64, blocks: int = 1, shared: int = 0) -> str:
        """The error of a launch, "" if there was none."""
        values = [each if isinstance(each, TensorMap) else ctypes.c_void_p(each.ctypes.data) for each in given]
        addresses = [each.address if isinstance(each, TensorMap) else ctypes.addressof(each) for each in values]
        extents = (ctypes.c_int64 * 6)(blocks, 1, 1, threads, 1, 1)
        code = self.library.launch((ctypes.c_void_p * len(given))(*addresses), extents, ctypes.c_int64(shared))
        return self.library.cupola_error().decode() if code else ""

    def tensor_map(self, array: npt.NDArray[Any], box: tuple[int, ...], swizzle: int, code: int) -> TensorMap | str:
        """The map of an array's tiles or its error; boxes go from the outermost dimension on, `code` is the type's in the driver."""
        memory, rank = ctypes.create_string_buffer(192), array.ndim
        address = -(-ctypes.addressof(memory) // 64) * 64
        encode = ctypes.CFUNCTYPE(ctypes.c_int)(self.library.driver(b"cuTensorMapEncodeTiled"))
        sizes, boxes = (ctypes.c_uint64 * rank)(*array.shape[::-1]), (ctypes.c_uint32 * rank)(*box[::-1])
        strides, ones = (ctypes.c_uint64 * rank)(*array.strides[-2::-1]), (ctypes.c_uint32 * rank)(*[1] * rank)
        pointer = ctypes.c_void_p(array.ctypes.data)
        if not encode(ctypes.c_void_p(address), code, rank, pointer, sizes, strides, boxes, ones, 0, swizzle, 0, 0):
            return TensorMap(address, memory)
        error, text = ctypes.CFUNCTYPE(ctypes.c_int)(self.library.driver(b"cuGetErrorString")), ctypes.c_char_p()
        error(1, ctypes.byref(text))
        return (text.value or b"").decode()
