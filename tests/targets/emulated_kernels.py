"""Kernels for another processor, run by qemu over arrays that end where nothing may be touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from cupola.compiler.build import build_library, plan_memory, signature_of
from cupola.compiler.plan import extract_plan
from cupola.compiler.sources.base import LazyTensor
from cupola.compiler.weights import lift_weights
from cupola.runtime.artifact.expressions import evaluate
from cupola.targets.registry import get_target
from cupola.targets.testing.case import Array, Arrays, KernelCase, lower_case
from tests.targets.emulated import run_arm_python

# An array begins at a multiple of 64 bytes, and the page behind it is no memory; bytes between keep what they are.
RUN = """
import ctypes, glob, mmap, sys
import numpy as np
[folder] = sys.argv[1:]
library = ctypes.CDLL(f"{folder}/lib.so")
library.cupola_workspace_bytes.restype = ctypes.c_int64
library.cupola_set_threads(2)
rests = []
def guarded(array):
    size = -(-array.nbytes // 64) * 64
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(memory.ctypes.data + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    own, rest = memory[pages - size : pages - size + array.nbytes], memory[pages - size + array.nbytes : pages]
    rest[:] = 0xA5
    rests.append(rest)
    own = own.view(array.dtype).reshape(array.shape)
    own[...] = array
    return own
for file in glob.glob(f"{folder}/*.in.npz"):
    data = dict(np.load(file))
    dims = (ctypes.c_int64 * data["dims"].size)(*data["dims"].tolist())
    arrays = [guarded(data[key]) for key in sorted(data) if key.startswith("a")]
    scratch = guarded(np.zeros(library.cupola_workspace_bytes(dims), np.uint8))
    pointers = (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])
    assert library.cupola_run(ctypes.c_int64(1), dims, pointers, ctypes.c_void_p(scratch.ctypes.data), None) == 0
    assert all((rest == 0xA5).all() for rest in rests), "bytes behind an array were written"
    np.save(file.replace(".in.npz", ".out.npy"), arrays[int(data["result"])])
"""


def run_emulated(case: KernelCase, isa: str, processor: str, given: Sequence[Arrays], folder: Path) -> list[Array]:
    """The results of a case, made for such an instruction set, on each of these arrays. Its weights are packed anew for each."""
    target, now = get_target(f"cpu:{isa}@linux"), dict[str, Array]()  # the arrays whose weights are packed
    weights = {i.name: LazyTensor(i.name, tuple(map(int, i.shape)), i.dtype, lambda n=i.name: now[n]) for i in case.inputs if i.is_weight}  # type: ignore[misc]
    lifted, packed = lift_weights(lower_case(case, target), weights)
    lifted.update_func(lifted.get_global_var("forward"), lifted["forward"].with_attr("results", [f"result.{i}" for i in range(8)]))
    planned = plan_memory(lifted)
    extracted, signature = extract_plan(planned), signature_of(planned["forward"], "forward", [])
    folder.mkdir()
    build_library(planned, extracted, target, folder / "lib.so")
    own = [spec in signature.outputs for spec in signature.inputs]
    [result, *_] = extracted.returned or [own.index(True)]
    for number, arrays in enumerate(given):
        now |= arrays
        brought = iter([*(arrays[i.name] for i in case.inputs if not i.is_weight), *(weight.compute() for weight in packed)])
        tensors = [None if is_own else next(brought) for is_own in own]
        shapes = [(spec.shape, tensor.shape) for spec, tensor in zip(signature.inputs, tensors, strict=True) if tensor is not None]
        sizes = {name: size for names, found in shapes for name, size in zip(names, found, strict=True) if isinstance(name, str)}
        filled = [
            np.zeros([evaluate(size, sizes) for size in spec.shape], spec.dtype) if tensor is None else tensor
            for spec, tensor in zip(signature.inputs, tensors, strict=True)
        ]
        saved = {f"a{i:02}": tensor.view(np.uint16) if tensor.dtype == ml_dtypes.bfloat16 else tensor for i, tensor in enumerate(filled)}
        np.savez(folder / f"{number}.in.npz", dims=[sizes[dim] for dim in extracted.plan.dims], result=result, **saved)
    run_arm_python(processor, RUN, folder)
    dtype = np.dtype(signature.inputs[result].dtype)
    return [np.load(folder / f"{number}.out.npy").view(dtype) for number in range(len(given))]
