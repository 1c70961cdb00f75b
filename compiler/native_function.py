"""A function of a module, compiled and loaded into this process: how the compiler runs kernels, to hold them against references."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import IRModule

from cupola.compiler.build import build_library, plan_memory, signature_of
from cupola.compiler.plan import Extracted, extract_plan, plan_of_kernels
from cupola.runtime.artifact.arrays import aligned_zeros
from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.manifest import HOST
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.artifact.tensors import FunctionSpec, TensorSpec
from cupola.runtime.environment import num_threads
from cupola.runtime.errors import EngineError, InputError
from cupola.runtime.wgpu_native import show_driver
from cupola.targets.base import Target

Array: TypeAlias = npt.NDArray[Any]
_MAX_RESULTS = 8


@dataclass(frozen=True)
class NativeFunction:
    """Takes arrays for the inputs and returns the outputs. Arrays that kernels write to are changed."""

    extracted: Extracted
    signature: FunctionSpec
    library: ctypes.CDLL

    def __call__(self, *arrays: Array) -> list[Array]:
        """Runs the function once.

        Raises:
            InputError: an array is not as the signature says.
            EngineError: a kernel failed.
        """
        outputs = {output.name for output in self.signature.outputs}
        with _held([spec for spec in self.signature.inputs if spec.name not in outputs], arrays) as (held, sizes):
            for spec in self.signature.outputs:
                held[spec.name] = aligned(tuple(evaluate(size, sizes) for size in spec.shape), np.dtype(spec.dtype))
            plan = self.extracted.plan
            dims = (ctypes.c_int64 * len(plan.dims))(*(sizes[dim] for dim in plan.dims))
            workspace = aligned((self.library.cupola_workspace_bytes(dims),), np.dtype(np.uint8))
            with _placed(self.library, [workspace, *(held[spec.name] for spec in self.signature.inputs)]) as (scratch, *addresses):
                pointers = (ctypes.c_void_p * len(addresses))(*addresses)
                failed = self.library.cupola_run(ctypes.c_int64(1), dims, pointers, ctypes.c_void_p(scratch), None)
        if failed:
            raise EngineError(f"{plan.calls[failed - 1].kernel} failed")
        returned = [self.signature.inputs[index] for index in self.extracted.returned] or self.signature.outputs
        return [held[spec.name] for spec in returned]


@dataclass(frozen=True)
class NativeKernels:
    """Kernels by name. They are given arrays for all tensors, results too."""

    plan: Plan
    library: ctypes.CDLL

    def __call__(self, name: str, *arrays: Array) -> None:
        """Calls a kernel that takes no numbers.

        Raises:
            InputError: an array is not as the kernel takes it.
            EngineError: it failed.
        """
        kernel = self.plan.kernel(name)
        with _held(kernel.pointers, arrays) as (held, sizes), _placed(self.library, list(held.values())) as addresses:
            pointers = map(ctypes.c_void_p, addresses)
            failed = self.library[f"cupola_kernel_{name}"](*pointers, *(ctypes.c_int64(sizes[size]) for size in kernel.sizes))
        if failed:
            raise EngineError(f"{name} failed")


def compile_function(mod: IRModule, target: Target, name: str = "forward") -> NativeFunction:
    """Compiles the function `name` of `mod`, whose calls are of kernels, and loads it."""
    function = mod[name]
    if not function.attrs or "num_input" not in function.attrs:
        function = function.with_attr("num_input", len(function.params))
    kernels = {var: f for var, f in mod.functions_items() if var.name_hint != name}
    function = function.with_attr("results", [f"result.{i}" for i in range(_MAX_RESULTS)])  # which no input is called
    planned = plan_memory(IRModule({**kernels, "forward": function}))
    extracted = extract_plan(planned)
    library = _load(planned, extracted, target)
    return NativeFunction(extracted, signature_of(planned["forward"], "forward", []), library)


def compile_kernels_alone(mod: IRModule, target: Target) -> NativeKernels:
    """Compiles the kernels of `mod`, and loads them."""
    extracted = plan_of_kernels(mod)
    return NativeKernels(extracted.plan, _load(mod, extracted, target))


def _load(mod: IRModule, extracted: Extracted, target: Target) -> ctypes.CDLL:
    """A library with as many threads as this process may use. Its file is not needed any more once it is loaded."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "lib.so"
        build_library(mod, extracted, target, file)
        library = ctypes.CDLL(str(file))
    if target.spec.kind != HOST:
        library.cupola_error.restype = ctypes.c_char_p
        show_driver(library)
        if library.cupola_open():
            raise EngineError(f"{target.spec.name} is no device of this machine: {library.cupola_error().decode('utf-8', 'replace')}")
    library.cupola_workspace_bytes.restype = ctypes.c_int64
    library.cupola_set_threads(num_threads())
    return library


@contextmanager
def _held(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> Iterator[tuple[dict[str, Array], dict[str, int]]]:
    """The arrays by name where kernels want them to be, and the sizes that they bring; what was written comes back in the end."""
    sizes: dict[str, int] = {}
    for spec, array in zip(specs, arrays, strict=True):
        if array.dtype != np.dtype(spec.dtype) or array.ndim != len(spec.shape):
            raise InputError(f"is not {spec.dtype} of rank {len(spec.shape)}", field=spec.name, fix="give such an array")
        sizes |= {size: found for size, found in zip(spec.shape, array.shape, strict=True) if isinstance(size, str)}
    for spec, array in zip(specs, arrays, strict=True):
        if tuple(evaluate(size, sizes) for size in spec.shape) != array.shape:
            raise InputError(f"has the shape {array.shape}, not {spec.shape}", field=spec.name, fix="give an array of that shape")
    held = {}
    for spec, array in zip(specs, arrays, strict=True):
        held[spec.name] = aligned(array.shape, array.dtype)
        held[spec.name][...] = array
    yield held, sizes
    for array, copy in zip(arrays, list(held.values()), strict=False):
        if array.flags.writeable:
            array[...] = copy


@contextmanager
def _placed(library: ctypes.CDLL, arrays: Sequence[Array]) -> Iterator[list[int]]:
    """The addresses at which kernels find the arrays. Where a device has memory of its own, they are copied there, and back in the end."""
    if not hasattr(library, "cupola_allocate"):
        yield [array.ctypes.data for array in arrays]
        return
    library.cupola_allocate.restype = ctypes.c_void_p
    addresses: list[int] = []
    try:
        for array in arrays:
            addresses.append(library.cupola_allocate(ctypes.c_int64(max(1, array.nbytes))))
            _copy(library, addresses[-1], array.ctypes.data, array.nbytes)
        yield addresses
        for array, address in zip(arrays, addresses, strict=True):
            _copy(library, array.ctypes.data, address, array.nbytes)
    finally:
        for address in addresses:
            library.cupola_free(ctypes.c_void_p(address))


def _copy(library: ctypes.CDLL, to: int | None, source: int | None, size: int) -> None:
    if library.cupola_copy(ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_int64(size)) or library.cupola_synchronize():
        library.cupola_error.restype = ctypes.c_char_p
        raise EngineError(f"the device failed: {library.cupola_error().decode('utf-8', 'replace')}")


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros that begin where kernels want them to."""
    return aligned_zeros("uint8", (math.prod(shape) * dtype.itemsize,)).view(dtype).reshape(shape)
