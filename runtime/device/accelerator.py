"""A device with memory of its own, by the functions of a library that was compiled for it (`targets/gpu/drivers/runtime.h`)."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from cupola.runtime.artifact.arrays import Array, num_bytes, numpy_dtype
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.interface import Tensor
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.device.weights import map_weights
from cupola.runtime.errors import EngineError, OptionError
from cupola.runtime.wgpu_native import show_driver

_UNBOUNDED = (1 << 63) - 1


def open_device(library: ctypes.CDLL, name: str) -> None:
    """Finds the driver and loads the kernels, once for each library. Raises OptionError, naming the target, if that fails."""
    show_driver(library)
    if library.cupola_open():
        raise OptionError(_message(library), field=name, fix="is there such a device, and its driver?")


def _message(library: ctypes.CDLL) -> str:
    library.cupola_error.restype = ctypes.c_char_p
    found: bytes = library.cupola_error()
    return found.decode("utf-8", "replace")


class Accelerator:
    """The device that `library`, which is open, was compiled for."""

    shares_memory = False

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.cupola_allocate.restype = ctypes.c_void_p
        library.cupola_allocate.argtypes = [ctypes.c_int64]
        library.cupola_free.argtypes = [ctypes.c_void_p]
        library.cupola_copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        library.cupola_clear.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        library.cupola_memory.argtypes = [ctypes.c_void_p]

    def empty(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """As `Device`. Raises EngineError if the device has no more memory."""
        address = self._library.cupola_allocate(max(1, num_bytes(dtype, shape)))
        if not address:
            raise EngineError(f"the device has no {num_bytes(dtype, shape)} bytes left: {_message(self._library)}")
        memory = _Memory()
        weakref.finalize(memory, self._library.cupola_free, address).atexit = False  # the driver may be gone by then
        return Tensor(dtype, shape, address, memory)

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """As `Device`."""
        tensor = self.empty(dtype, shape)
        self._check(self._library.cupola_clear(tensor.address, num_bytes(dtype, shape)))
        return tensor

    def head(self, tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """As `Device`."""
        return Tensor(dtype, shape, tensor.address, tensor.memory)

    def upload(self, array: Array, tensor: Tensor) -> None:
        """As `Device`."""
        if array.dtype != numpy_dtype(tensor.dtype) or array.shape != tensor.shape:
            raise EngineError(f"{array.dtype} {array.shape} was given for {tensor.dtype} {tensor.shape}")
        array = np.ascontiguousarray(array)
        self.copy(tensor.address, array.ctypes.data, array.nbytes)  # such memory is staged before the call is back (CUDA driver API)

    def download(self, tensor: Tensor) -> Array:
        """As `Device`: a copy."""
        array = np.empty(tensor.shape, numpy_dtype(tensor.dtype))
        self.copy(array.ctypes.data, tensor.address, array.nbytes)
        self.synchronize()
        return array

    def copy(self, to: int, source: int, size: int) -> None:
        """Copies bytes between addresses of the host's or the device's memory, after what was asked for before. Raises EngineError."""
        self._check(self._library.cupola_copy(to, source, size))

    def page_pools(self, kv: KVSpec, num_blocks: Sequence[int], swap: SwapSpace) -> AcceleratorPools:
        """As `Device`."""
        return AcceleratorPools(self, kv, num_blocks, swap)

    def synchronize(self) -> None:
        """As `Device`. Raises EngineError if what was asked for has failed."""
        self._check(self._library.cupola_synchronize())

    def memory_budget(self) -> int:
        """As `Device`: what is free now."""
        return self._memory()[0]

    def total_memory(self) -> int:
        """As `Device`."""
        return self._memory()[1]

    def largest_tensor(self) -> int:
        """As `Device`."""
        return self._memory()[2]

    def map_weights(self, artifact: Artifact) -> Mapping[str, Tensor]:
        """As `Device`: copies, each made of the mapped file."""
        weights, found = map_weights(artifact), {}
        for spec in artifact.manifest.weights:
            array = weights[spec.name]
            found[spec.name] = self.empty(spec.dtype, array.shape)
            self.upload(array, found[spec.name])
        return found

    def _memory(self) -> tuple[int, int, int]:
        found = (ctypes.c_int64 * 3)(0, 0, _UNBOUNDED)  # few libraries say the last
        self._check(self._library.cupola_memory(found))
        return found[0], found[1], found[2]

    def _check(self, code: int) -> None:
        if code:
            raise EngineError(f"the device failed: {_message(self._library)}")


class AcceleratorOutput:
    """A step's results in the device's memory; each comes to the host when it is asked for.

    Args:
        tensors: by the names of outputs: logits f32 [r, vocab], maxima f32 [r, blocks], argmax i32 [MAX_STEPS, r] and perhaps hidden
            f32 [r, hidden].
    """

    def __init__(self, device: Accelerator, tensors: Mapping[str, Tensor]) -> None:
        self._device, self._tensors = device, tensors
        self._tokens: Array | None = None

    def result(self) -> AcceleratorOutput:
        """As `StepHandle`."""
        return self

    def argmax(self) -> Array:
        """As `StepOutput`."""
        if self._tokens is None:
            self._tokens = self._device.download(self._tensors["argmax"])
        return self._tokens

    def row(self, index: int) -> Array:
        """As `StepOutput`."""
        return self._row("logits", index)

    def rows(self, indices: Sequence[int]) -> Array:
        """As `StepOutput`."""
        return np.stack([self.row(index) for index in indices])

    def hidden(self, index: int) -> Array:
        """As `StepOutput`."""
        if "hidden" not in self._tensors:
            raise EngineError("the artifact gives no hidden states; compile it with the pass give_hidden")
        return self._row("hidden", index)

    def maxima(self, index: int) -> Array:
        """As `StepOutput`."""
        return self._row("maxima", index)

    def _row(self, name: str, index: int) -> Array:
        whole = self._tensors[name]
        size = num_bytes(whole.dtype, whole.shape[1:])
        return self._device.download(Tensor(whole.dtype, whole.shape[1:], whole.address + index * size, whole.memory))


class _Memory:
    """An owner of memory of the device's, which is freed when no tensor refers to it any more."""


class AcceleratorPools:
    """As `PagePools`."""

    def __init__(self, device: Accelerator, kv: KVSpec, num_blocks: Sequence[int], swap: SwapSpace) -> None:
        self._device, self._num_blocks, self._swap = device, num_blocks, swap
        found: dict[str, Tensor] = {}
        self._pools: list[list[_Pool]] = []  # of each group
        for group, count in enumerate(num_blocks):
            tensors = {pool.name: device.zeros(pool.dtype, tuple(map(int, pool.shape))) for pool in kv.pools_of(group, count)}
            axes = kv.block_axes(group)
            self._pools.append([_Pool.of(tensor, axis) for tensor, axis in zip(tensors.values(), axes, strict=True)])
            found |= tensors
        self.tensors: Mapping[str, Tensor] = found

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """As `PagePools`."""
        for group, source, target in copies:
            held = self._block(group, source), self._block(group, target)
            for pool, read, written in zip(self._pools[group], *held, strict=True):
                for start, to in zip(read, written, strict=True):
                    self._device.copy(to, start, pool.part)

    def read_block(self, group: int, block: int) -> bytes:
        """As `PagePools`."""
        return self._staged(group, block, None).tobytes()

    def write_block(self, group: int, block: int, data: bytes | memoryview) -> bool:
        """As `PagePools`."""
        if len(data) != sum(pool.count * pool.part for pool in self._pools[group]):
            return False
        self._staged(group, block, data)
        return True

    def _staged(self, group: int, block: int, data: bytes | memoryview | None) -> Array:
        """A block's parts in the host's memory: those of the device or, if `data` is given, those that it gets."""
        pools = self._pools[group]
        size = sum(pool.count * pool.part for pool in pools)
        staged = np.empty(size, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        at = staged.ctypes.data
        for pool, addresses in zip(pools, self._block(group, block), strict=True):
            for address in addresses:
                self._device.copy(*((at, address) if data is None else (address, at)), pool.part)
                at += pool.part
        self._device.synchronize()
        return staged

    def _block(self, group: int, block: int) -> list[list[int]]:
        """The addresses of a block's parts in every pool of its group."""
        pools, index = self._pools[group], block - self._num_blocks[group]
        if index < 0:
            return [pool.addresses(block) for pool in pools]
        parts = self._swap.block(group, index)
        return [[array.ctypes.data + i * pool.part for i in range(pool.count)] for pool, array in zip(pools, parts, strict=True)]


class _Pool:
    """A pool whose blocks lie in `count` parts of `part` bytes each, as many as there are indices before the axis of blocks."""

    def __init__(self, address: int, num_blocks: int, count: int, part: int) -> None:
        self.address, self.num_blocks, self.count, self.part = address, num_blocks, count, part

    @staticmethod
    def of(tensor: Tensor, axis: int) -> _Pool:
        return _Pool(tensor.address, tensor.shape[axis], math.prod(tensor.shape[:axis]), num_bytes(tensor.dtype, tensor.shape[axis + 1 :]))

    def addresses(self, block: int) -> list[int]:
        return [self.address + (i * self.num_blocks + block) * self.part for i in range(self.count)]
