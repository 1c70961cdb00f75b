"""The CPU as a device: its memory is the host's own, and nothing has to be copied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from cupola.runtime.artifact.arrays import Array, aligned_empty, aligned_zeros, num_bytes, numpy_dtype
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.interface import Float32, Int32, Tensor
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.device.weights import map_weights
from cupola.runtime.errors import EngineError
from cupola.runtime.system.memory import machine_memory

_UNBOUNDED = 2**63 - 1


class HostDevice:
    """This machine's CPUs."""

    shares_memory = True

    def empty(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """As `Device`."""
        return self.head(tensor_of(aligned_empty("uint8", (max(1, num_bytes(dtype, shape)),)), "uint8"), dtype, shape)

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """As `Device`."""
        return self.head(tensor_of(aligned_zeros("uint8", (max(1, num_bytes(dtype, shape)),)), "uint8"), dtype, shape)

    def head(self, tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """As `Device`."""
        whole = tensor.memory.reshape(-1).view(np.uint8)
        return Tensor(dtype, shape, tensor.address, whole[: num_bytes(dtype, shape)].view(numpy_dtype(dtype)).reshape(shape))

    def upload(self, array: Array, tensor: Tensor) -> None:
        """As `Device`."""
        memory = tensor.memory
        if array.dtype != memory.dtype or array.shape != memory.shape:  # numpy would convert and repeat in silence
            raise EngineError(f"{array.dtype} {array.shape} was given for {memory.dtype} {memory.shape}")
        memory[...] = array

    def download(self, tensor: Tensor) -> Array:
        """As `Device`."""
        memory: Array = tensor.memory
        return memory

    def page_pools(self, kv: KVSpec, num_blocks: Sequence[int], swap: SwapSpace) -> HostPools:
        """As `Device`."""
        return HostPools(self, kv, num_blocks, swap)

    def synchronize(self) -> None:
        """As `Device`; what was asked for is done."""

    def memory_budget(self) -> int:
        """As `Device`: the machine's memory, as far as the system tells."""
        return machine_memory() or _UNBOUNDED

    def total_memory(self) -> int:
        """As `Device`."""
        return self.memory_budget()

    def largest_tensor(self) -> int:
        """As `Device`."""
        return _UNBOUNDED

    def map_weights(self, artifact: Artifact) -> Mapping[str, Tensor]:
        """As `Device`: mapped, not copied."""
        weights = map_weights(artifact)
        return {spec.name: tensor_of(weights[spec.name], spec.dtype) for spec in artifact.manifest.weights}


class HostPools:
    """As `PagePools`."""

    def __init__(self, device: HostDevice, kv: KVSpec, num_blocks: Sequence[int], swap: SwapSpace) -> None:
        self._num_blocks, self._swap = num_blocks, swap
        found: dict[str, Tensor] = {}
        self._by_block: list[list[Array]] = []  # each group's pools, their axis of blocks in front
        for group, count in enumerate(num_blocks):
            tensors = {pool.name: device.zeros(pool.dtype, tuple(map(int, pool.shape))) for pool in kv.pools_of(group, count)}
            axes = kv.block_axes(group)
            self._by_block.append([np.moveaxis(tensor.memory, axis, 0) for tensor, axis in zip(tensors.values(), axes, strict=True)])
            found |= tensors
        self.tensors: Mapping[str, Tensor] = found

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """As `PagePools`."""
        for group, source, target in copies:
            for read, written in zip(self._block(group, source), self._block(group, target), strict=True):
                written[...] = read

    def read_block(self, group: int, block: int) -> bytes:
        """As `PagePools`."""
        return b"".join(part.tobytes() for part in self._block(group, block))

    def write_block(self, group: int, block: int, data: bytes | memoryview) -> bool:
        """As `PagePools`."""
        parts, start = self._block(group, block), 0
        if len(data) != sum(part.nbytes for part in parts):
            return False
        for part in parts:
            part[...] = np.frombuffer(data, part.dtype, part.size, start).reshape(part.shape)
            start += part.nbytes
        return True

    def _block(self, group: int, block: int) -> list[Array]:
        """A block's part of every pool of its group."""
        if block >= self._num_blocks[group]:
            return self._swap.block(group, block - self._num_blocks[group])
        return [pool[block] for pool in self._by_block[group]]


def tensor_of(array: Array, dtype: str) -> Tensor:
    """An array of the host's as a tensor of a manifest's `dtype`. Raises EngineError if it has gaps."""
    if not array.flags.c_contiguous:
        raise EngineError(f"an array of shape {array.shape} has gaps")
    return Tensor(dtype, array.shape, array.ctypes.data, array)


@dataclass(frozen=True)
class HostOutput:
    """A step that is done, its results in the host's memory: all of them are views.

    Attributes:
        logits: f32 [r, vocab], of the last step.
        block_maxima: f32 [r, blocks].
        tokens: i32 [at least as many as there were steps, r].
        hidden_rows: f32 [r, hidden]; None if the artifact does not give them.
    """

    logits: Float32
    block_maxima: Float32
    tokens: Int32
    hidden_rows: Float32 | None = None

    @classmethod
    def of(cls, logits: Float32, hidden_rows: Float32 | None = None) -> Self:
        """Of one step, for an artifact that finds no maxima and no argmax."""
        maxima = np.maximum.reduceat(logits, np.arange(0, logits.shape[1], MAXIMA_BLOCK), axis=1)
        tokens = np.where(np.isnan(maxima).any(axis=1), -1, logits.argmax(axis=1)).astype(np.int32)[None]
        return cls(logits, maxima, tokens, hidden_rows)

    def result(self) -> Self:
        """As `StepHandle`."""
        return self

    def argmax(self) -> Int32:
        """As `StepOutput`."""
        return self.tokens

    def row(self, index: int) -> Float32:
        """As `StepOutput`."""
        return self.logits[index]

    def rows(self, indices: Sequence[int]) -> Float32:
        """As `StepOutput`; of a range no copy."""
        if isinstance(indices, range) and indices.step == 1:
            return self.logits[indices.start : indices.stop]
        return self.logits[list(indices)]

    def hidden(self, index: int) -> Float32:
        """As `StepOutput`."""
        if self.hidden_rows is None:
            raise EngineError("the artifact gives no hidden states; compile it with the pass give_hidden")
        return self.hidden_rows[index]

    def maxima(self, index: int) -> Float32:
        """As `StepOutput`."""
        return self.block_maxima[index]
