"""A kernel of a test's own, in CUDA C++, launched on arrays."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cupola.targets.gpu.cuda import RUNTIME
from cupola.targets.softgpu.build import DRIVER, link
from cupola.targets.softgpu.translate import translate

_LAUNCH = """
#include <stdint.h>
int32_t cupola_launch(int32_t index, void **arguments, const int64_t *extents, int64_t shared_bytes);
const int32_t cupola_num_symbols = 1;
const char *const cupola_symbols[] = {"kernel"};
__attribute__((visibility("default"))) int32_t launch(void **arguments, const int64_t *extents, int64_t shared_bytes) {
  return cupola_launch(0, arguments, extents, shared_bytes);
}
"""


class Kernel:
    """A kernel of its arguments, all of them pointers, and its body; `before` stands before it."""

    def __init__(self, body: str, folder: Path, arguments: str = "float *x", before: str = "") -> None:
        sources = [folder / "kernels.cpp", folder / "launches.c", DRIVER, RUNTIME]
        sources[0].write_text(translate(f'{before}\nextern "C" __global__ void kernel({arguments}) {{\n{body}\n}}\n', ["kernel"]))
        sources[1].write_text(_LAUNCH)
        self.file = folder / "lib.so"
        link([], sources, self.file)
        self.library = ctypes.CDLL(str(self.file))
        self.library.cupola_error.restype = ctypes.c_char_p
        assert self.library.cupola_open() == 0

    def __call__(self, *arrays: npt.NDArray[Any], threads: int = 64, blocks: int = 1, shared: int = 0) -> str:
        """The error of a launch, "" if there was none."""
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        arguments = (ctypes.c_void_p * len(arrays))(*[ctypes.addressof(pointer) for pointer in pointers])
        extents = (ctypes.c_int64 * 6)(blocks, 1, 1, threads, 1, 1)
        code = self.library.launch(arguments, extents, ctypes.c_int64(shared))
        return self.library.cupola_error().decode() if code else ""
