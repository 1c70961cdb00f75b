"""Runs a compiled artifact. The only file that knows TVM."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import mmap
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes  # noqa: F401  gives numpy the name "bfloat16"
import numpy as np
import numpy.typing as npt

from cupola.runtime import environment
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.inputs import MAX_STEPS, STEP_INPUTS
from cupola.runtime.artifact.manifest import MANIFEST, REPEAT_IN_TEAM, Manifest
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.artifact.tensors import KernelSpec, TensorSpec, WeightSpec
from cupola.runtime.device.choose import choose_library
from cupola.runtime.device.interface import Batch, Float32, Int32, Logits
from cupola.runtime.device.library import load_library
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.errors import ArtifactError, EngineError

Array = npt.NDArray[Any]
SPARE_BYTES = 16 << 20  # of workspace that is kept beside the largest step's
ALIGNMENT = 64  # bytes; compiled kernels load whole vectors from the start of a tensor


class TVMExecutor:
    """The compiled `forward`, its weights (mapped from the artifact, not copied) and its K/V pages.

    Made by `load`. Page memory is touched, and so taken from the system, only as blocks are written.
    """

    def __init__(self, machine: Any, artifact: Artifact, num_blocks: Sequence[int], swap: SwapSpace) -> None:
        self.num_blocks, self.num_swap_blocks, self.provide_swap = tuple(num_blocks), swap.num_blocks, swap.provide
        self._swap = swap
        self._machine = machine
        self._workspace = _Workspace(artifact.manifest)
        forward = artifact.manifest.function("forward")
        inputs, outputs = forward.inputs, {output.name for output in forward.outputs}
        kv, weights = artifact.manifest.kv, map_weights(artifact)
        pages = make_pages(kv, num_blocks)
        self._by_block = [
            [np.moveaxis(pages[pool.name], axis, 0) for pool, axis in zip(kv.pools_of(group, 1), kv.block_axes(group), strict=True)]
            for group in range(len(kv.groups))
        ]
        fixed = {name: to_tensor(array) for name, array in {**pages, **weights}.items()}
        self._repeat = _repeat(machine)
        self._arguments = [1, machine["forward"], *(fixed.get(spec.name) for spec in inputs)]
        known, places = fixed.keys() | outputs, dict(enumerate(inputs, 2))
        steps = {i: spec.name for i, spec in places.items() if spec.name not in known}
        # Each with the field of `Batch` that fills it and, as slots.0 has one, a group.
        self._places = [(i, _StepTensor(), *_split_name(name)) for i, name in steps.items()]
        self._result_places = [i for i, spec in places.items() if spec.name in outputs]
        self._results = _Results([places[i] for i in self._result_places])
        self.max_steps = MAX_STEPS if self._result_places else 1
        _check_inputs(artifact, [name for *_, name, _ in self._places])

    def run(self, batch: Batch, num_steps: int = 1) -> Logits:
        """Copies the batch's blocks, appends its K/V to the pages and returns the logits of `logit_rows`, all as `Executor.run`.

        Raises:
            EngineError: if the compiled code fails.
        """
        for group, source, target in batch.copies:
            for read, written in zip(self._block(group, source), self._block(group, target), strict=True):
                written[...] = read
        for i, tensor, name, group_or_none in self._places:
            value = getattr(batch, name)
            self._arguments[i] = tensor.hold(value if group_or_none is None else value[group_or_none])
        num_rows = len(batch.logit_rows)
        if self._result_places:
            for i, tensor in zip(self._result_places, self._results.hold(num_rows), strict=True):
                self._arguments[i] = tensor
        self._workspace.expect(len(batch.tokens), num_rows)
        self._arguments[0] = num_steps
        try:
            returned = self._repeat(*self._arguments)
        except Exception as error:  # TVM raises many types, RuntimeError's and AttributeError's among them
            raise EngineError(f"the compiled model failed: {error}") from error
        if self._result_places:
            return self._results.logits
        values: Any = np.from_dlpack(returned if hasattr(returned, "__dlpack__") else returned[0])
        return Logits.of(values)

    def _block(self, group: int, block: int) -> list[Array]:
        """A block's part of every pool of its group; swap blocks come after the pages' own."""
        if block >= self.num_blocks[group]:
            return self._swap.block(group, block - self.num_blocks[group])
        return [pool[block] for pool in self._by_block[group]]

    def has_kernel(self, kernel: KernelSpec) -> bool:
        """Whether the library that was loaded has it; others of the artifact may have more."""
        return bool(self._machine.imports[0].implements_function(kernel.name))

    def kernel(self, name: str) -> Callable[..., None]:
        """A kernel of the library, to be called with arrays; it writes to the last one."""
        kernel = self._machine.imports[0][name]
        return lambda *arrays: kernel(*(to_tensor(array) for array in arrays))

    @contextmanager
    def watched(self, kernels: Collection[str], on_call: OnKernelCall) -> Iterator[None]:
        """Within the context, every call of one of `kernels` is timed and reported: its name, seconds, and arguments by address.

        The time that it takes to pass the arguments is measured with a function that does nothing, and taken off.
        """
        nothing, clock = tvm_ffi().get_global_func("testing.nop"), time.perf_counter_ns

        def call(kernel: Any, name: str, before: bool, _result: object, *arguments: Any) -> int:
            if not before or name not in kernels:
                return _GO_ON
            start = clock()
            nothing(*arguments)
            middle = clock()
            kernel(*arguments)
            end = clock()
            tensors = [argument for argument in arguments if hasattr(argument, "__dlpack__")]
            seconds = 1e-9 * (end - middle - (middle - start))
            on_call(name, seconds, [(t.data_ptr(), TensorSpec("", str(t.dtype), tuple(t.shape))) for t in tensors])
            return _SKIP

        self._machine["set_instrument"](call)
        try:
            yield
        finally:
            self._machine["set_instrument"](None)


class _StepTensor:
    """An input that every step brings, in memory from which kernels may load whole vectors.

    The memory and the tensor over it are kept: a decode step, which is shaped like the last one, only copies numbers.
    """

    def __init__(self) -> None:
        self._grow(1)
        self._array, self._tensor = self._memory, self._whole

    def hold(self, array: Int32) -> Any:
        """A TVM tensor with the contents of `array`; what it was given before is overwritten."""
        if array.shape != self._array.shape:
            if array.size > self._memory.size:
                self._grow(array.size)
            self._array = self._memory[: array.size].reshape(array.shape)
            self._tensor = _view(self._whole, array.shape, "int32")  # of no rows too, which DLPack does not take
        self._array[...] = array
        return self._tensor

    def _grow(self, size: int) -> None:
        self._memory = _aligned_zeros((size,), np.dtype(np.int32))
        self._whole = to_tensor(self._memory)


class _Results:
    """Memory that a step writes its results to, as `Logits` has them, and the next one over them.

    What a large step took is given back when a smaller one needs much less.
    """

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self._outputs, self._num_rows = outputs, -1
        self._grow(1)

    def hold(self, num_rows: int) -> list[Any]:
        """TVM tensors of so many rows, which `logits` shows."""
        if num_rows != self._num_rows:
            shapes, spare = self._shapes(num_rows), (self._capacity - num_rows) * sum(map(math.prod, self._shapes(1))) * 4
            if not 0 <= spare <= SPARE_BYTES:
                self._grow(max(1, num_rows))
            arrays = [memory[: math.prod(shape)].reshape(shape) for memory, shape in zip(self._memory, shapes, strict=True)]
            views = zip(self._whole, shapes, self._outputs, strict=True)
            self._tensors = [_view(whole, shape, output.dtype) for whole, shape, output in views]
            self.logits, self._num_rows = Logits(*arrays), num_rows
        return self._tensors

    def _shapes(self, num_rows: int) -> list[tuple[int, ...]]:
        return [tuple(num_rows if isinstance(size, str) else size for size in output.shape) for output in self._outputs]

    def _grow(self, num_rows: int) -> None:
        sizes = zip(self._shapes(num_rows), self._outputs, strict=True)
        self._memory = [_aligned_zeros((math.prod(shape),), np.dtype(output.dtype)) for shape, output in sizes]
        self._whole, self._capacity = [to_tensor(memory) for memory in self._memory], num_rows


class _Workspace:
    """Keeps in bounds what TVM's allocator holds back: all memory that a step ever took, to be used again by steps of the same sizes.

    Without it a process grows with every new length of prompt.
    """

    def __init__(self, manifest: Manifest) -> None:
        forward = manifest.function("forward")
        results = [output for output in forward.outputs if output not in forward.inputs]
        outputs = sum(replace(output, shape=(1, *output.shape[1:])).num_bytes for output in results)
        self._bytes_per_token, self._bytes_per_row = forward.bytes_per_token, forward.bytes_per_logit_row + outputs
        self._sizes: set[tuple[int, int]] = set()
        self._num_bytes = self._largest = 0

    def expect(self, num_tokens: int, num_rows: int) -> None:
        """Frees what earlier steps left if a step of these sizes would make it too much."""
        if (num_tokens, num_rows) in self._sizes:
            return
        num_bytes = num_tokens * self._bytes_per_token + num_rows * self._bytes_per_row
        self._largest = max(self._largest, num_bytes)
        if self._num_bytes + num_bytes > self._largest + SPARE_BYTES:
            tvm_ffi().get_global_func("vm.builtin.memory_manager.clear")()
            self._sizes.clear()
            self._num_bytes = 0
        self._sizes.add((num_tokens, num_rows))
        self._num_bytes += num_bytes


def _repeat(machine: Any) -> Callable[..., Any]:
    """What makes several calls of a function: the library's own way, with its threads, if it has one."""
    library = machine.imports[0]
    return library[REPEAT_IN_TEAM] if library.implements_function(REPEAT_IN_TEAM) else _repeat_plainly


def _repeat_plainly(times: int, function: Callable[..., Any], *arguments: Any) -> Any:
    for _ in range(times):
        returned = function(*arguments)
    return returned


def _split_name(name: str) -> tuple[str, int | None]:
    """What an input takes of the step, and the group that it is of, if it is of one."""
    stem, _, group = name.partition(".")
    return stem, int(group) if group.isdecimal() else None


def _check_inputs(artifact: Artifact, names: Sequence[str]) -> None:
    for name in names:
        if name not in _STEP_INPUTS:
            file = artifact.path / MANIFEST
            raise ArtifactError(f"takes {name!r}, which nothing gives", file=file, field="functions.forward", fix="compile the model again")


OnKernelCall = Callable[[str, float, list[tuple[int, TensorSpec]]], None]
_GO_ON, _SKIP = 0, 1  # tell TVM's virtual machine to make a call, or that it was made
_STEP_INPUTS = tuple(line.name for line in STEP_INPUTS if line.name in Batch._fields)  # what the engine gives


def load(artifact: Artifact, num_blocks: Sequence[int], device: str | None = None, swap: SwapSpace | None = None) -> TVMExecutor:
    """Loads an artifact, with the library for `device` or the best that runs here.

    `num_blocks` are those of each group's pools. `swap` is where blocks can be put aside; None is nowhere.

    Raises:
        ArtifactError: if it was compiled for other machines or another TVM, or can't be loaded.
        OptionError: if there is no library for `device`, or this machine can't run it.
    """
    manifest, library = artifact.manifest, artifact.path / choose_library(artifact, device).file
    installed = importlib.metadata.version("apache-tvm")
    if manifest.tvm_version != installed:
        found = f"is {manifest.tvm_version!r}, installed is {installed!r}"
        raise ArtifactError(found, file=artifact.path / MANIFEST, field="tvm_version", fix="compile the model again")
    load_runtime()
    sha256 = next(entry.sha256 for entry in manifest.files if entry.name == library.name)
    try:
        machine = load_library(library, sha256, _load_module)["vm_load_executable"]()
        machine["vm_initialization"](_CPU, 0, _POOLED)
        machine["forward"]
    except ArtifactError:
        raise
    except Exception as error:  # TVM raises many types
        raise ArtifactError(
            f"can't be loaded: {str(error).strip().splitlines()[-1]}", file=library, fix="compile the model again"
        ) from error
    return TVMExecutor(machine, artifact, num_blocks, swap or SwapSpace(manifest.kv, [0] * len(num_blocks)))


def _load_module(path: str) -> Any:
    """A shared library, whatever its path ends in, by which TVM would choose a format."""
    return tvm_ffi().get_global_func("ffi.Module.load_from_file.so")(path, "so")


_CPU, _POOLED = 1, 2  # DLPack's number of the device, TVM's of an allocator that keeps memory for the next step


def load_runtime() -> None:
    """Loads TVM's runtime library, and none of TVM's Python: a third of its memory, a tenth of its time.

    A process that imports tvm later, to compile, finds the library there.
    """
    # Read when a thread first runs a kernel. TVM would start half as many threads as there are CPUs, and tie them, with
    # the whole process, to the first ones, where those of the next process are too.
    os.environ["TVM_NUM_THREADS"] = str(environment.num_threads())
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    package = importlib.util.find_spec("tvm")
    folders = [Path(folder) / "lib" for folder in (package and package.submodule_search_locations) or ()]
    tvm_ffi().libinfo.load_lib_ctypes("apache-tvm", "tvm_runtime", "RTLD_GLOBAL", folders)


@functools.cache
def tvm_ffi() -> ModuleType:
    """The package of that name; it imports torch, hundreds of megabytes, wherever it can, which is kept from it here."""
    torch_is_absent = "torch" not in sys.modules
    if torch_is_absent:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail
    try:
        return importlib.import_module("tvm_ffi")
    finally:
        if torch_is_absent:
            del sys.modules["torch"]


def make_pages(kv: KVSpec, num_blocks: Sequence[int]) -> dict[str, Array]:
    """Zeroed page pools by input name, of `num_blocks` blocks in each group."""
    pools = (pool for group, count in enumerate(num_blocks) for pool in kv.pools_of(group, count))
    return {pool.name: _aligned_zeros(tuple(int(size) for size in pool.shape), np.dtype(pool.dtype)) for pool in pools}


def map_weights(artifact: Artifact) -> dict[str, Array]:
    """The weights by name: views of the mapped files, or aligned copies of what is not aligned there."""
    files = {weight.file for weight in artifact.manifest.weights}
    maps = {name: _map(artifact.path / name) for name in files}
    return {weight.name: _weight(maps[weight.file], weight) for weight in artifact.manifest.weights}


def _map(file: Path) -> Array:
    """A file's bytes where the system's cache has them, which reads them by large pages if it can."""
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # DLPack refuses read-only arrays
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the system's kernel was built without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def _weight(file: Array, spec: WeightSpec) -> Array:
    dtype = np.dtype(spec.dtype)
    num_bytes = int(np.prod(spec.shape, dtype=np.int64)) * dtype.itemsize
    data = file[spec.offset : spec.offset + num_bytes]
    if data.ctypes.data % ALIGNMENT:
        copy = _aligned_zeros(data.shape, data.dtype)
        copy[...] = data
        data = copy
    return data.view(dtype).reshape(spec.shape)


def aligned_ones(size: int) -> Float32:
    """float32 ones, each written to, so that they lie in memory of their own."""
    ones = _aligned_zeros((size,), np.dtype(np.float32))
    ones[...] = 1
    return ones


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.zeros(num_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def to_tensor(array: Array) -> Any:
    """`array` as a TVM tensor that shares its memory; a copy only if it is not aligned."""
    if array.ctypes.data % ALIGNMENT:
        copy = _aligned_zeros(array.shape, array.dtype)
        copy[...] = array
        array = copy
    if array.dtype == np.dtype("bfloat16"):  # which DLPack export from numpy does not know
        return _view(to_tensor(array.view(np.uint16)), array.shape, "bfloat16")
    return tvm_ffi().from_dlpack(array, require_alignment=ALIGNMENT, require_contiguous=True)


def _view(tensor: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """The beginning of `tensor`'s memory as a tensor of another shape or type."""
    return tvm_ffi().get_global_func("runtime.TVMTensorCreateView")(tensor, tvm_ffi().Shape(shape), dtype, 0)
