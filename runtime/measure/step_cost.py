"""The work of a step's calls, reckoned from the plan, the costs that kernels declare and the batch: bytes, operations and launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.manifest import COMPILE_AGAIN, MANIFEST, Manifest
from cupola.runtime.artifact.plan import INPUT, Place, Plan, PlanCall, PlanKernel
from cupola.runtime.artifact.tensors import KernelCost, KernelSpec, TensorSpec
from cupola.runtime.device.interface import Batch, Int32
from cupola.runtime.errors import ArtifactError


@dataclass(frozen=True)
class CallCost:
    """The work that a call can't do without: each argument's bytes once, of K/V pools those of the keys that the batch needs and writes.

    Of pools of states, each sequence's state of one layer is read, unless it begins, and written.

    Attributes:
        weight_bytes, kv_bytes, other_bytes: by what the arguments are; states are among K and V.
        num_operations: a multiply-add is two.
        num_launches: of kernels of a GPU's.
    """

    weight_bytes: int
    kv_bytes: int
    other_bytes: int
    num_operations: int
    num_launches: int

    @property
    def num_bytes(self) -> int:
        """All of them."""
        return self.weight_bytes + self.kv_bytes + self.other_bytes


class StepCost:
    """Reckons for one library of an artifact. Kernels that the manifest does not list have no cost.

    Attributes:
        arithmetic: of each kernel by name, as `KernelCost` has it.

    Raises:
        ArtifactError: a kernel's launches are no numbers or expressions over its sizes.
    """

    def __init__(self, manifest: Manifest, plan: Plan) -> None:
        listed = {kernel.name: kernel for kernel in manifest.kernels}
        self._kernels = {kernel.name: (kernel, listed[kernel.name]) for kernel in plan.kernels if kernel.name in listed}
        places = {tensor.name: Place(INPUT, i) for i, tensor in enumerate(manifest.function("forward").inputs)}
        self._weights = {places[weight.name] for weight in manifest.weights}
        kv = manifest.kv
        # Bytes of a layer's part of a pool for each token; of a pool of states, whose first axis is the layers', for each sequence.
        self._pools = {
            places[pool.name]: pool.num_bytes // (len(group.layers) * kv.block_size)
            for i, group in enumerate(kv.paged)
            for pool in kv.pools_of(i, 1)
        }
        states = [] if kv.recurrent is None else kv.pools_of(kv.recurrent, 1)
        self._states = {places[pool.name]: pool.num_bytes // int(pool.shape[0]) for pool in states}
        for kernel, spec in self._kernels.values():
            _check_launches(kernel, spec)
        self.arithmetic = {name: spec.cost.arithmetic for name, (_, spec) in self._kernels.items()}

    def of(self, call: PlanCall, sizes: Mapping[str, int], batch: Batch) -> CallCost | None:
        """The cost of a call in a step whose sizes, in the plan's terms, are these; None if the manifest does not list the kernel."""
        if call.kernel not in self._kernels:
            return None
        kernel, spec = self._kernels[call.kernel]
        cost = spec.cost
        own = {name: evaluate(size, sizes) for name, size in zip(kernel.sizes, call.sizes, strict=True)}
        num_launches = sum(evaluate(blocks, own) > 0 for blocks in spec.launches)
        if spec.launches and not num_launches:
            return CallCost(0, 0, 0, 0, 0)
        shapes = (tuple(evaluate(size, own) for size in tensor.shape) for tensor in kernel.pointers)
        tensors = [replace(tensor, shape=shape) for tensor, shape in zip(kernel.pointers, shapes, strict=True)]
        num_rows = int(tensors[-1].shape[0])
        pairs = int(_seen(batch.positions + 1, cost.window).sum()) if cost.operations_per_pair else 0
        num_bytes = self._bytes(cost, dict(zip(call.pointers, tensors, strict=True)), num_rows, batch)
        kept = self._pools.keys() | self._states.keys()
        return CallCost(
            weight_bytes=sum(size for place, size in num_bytes.items() if place in self._weights),
            kv_bytes=sum(size for place, size in num_bytes.items() if place in kept),
            other_bytes=sum(size for place, size in num_bytes.items() if place not in self._weights and place not in kept),
            num_operations=num_rows * cost.operations_per_row + pairs * cost.operations_per_pair,
            num_launches=num_launches,
        )

    def _bytes(self, cost: KernelCost, tensors: Mapping[Place, TensorSpec], num_rows: int, batch: Batch) -> dict[Place, int]:
        sizes = {
            place: self._pool_bytes(self._pools[place], cost.window, batch)
            if place in self._pools
            else self._state_bytes(self._states[place], batch)
            if place in self._states
            else tensor.num_bytes
            for place, tensor in tensors.items()
        }
        gathered = sorted(sizes, key=lambda place: -sizes[place])[: cost.num_gathered]
        whole = sum(sizes[place] for place in gathered)
        read = min(num_rows * cost.gathered_bytes_per_row, whole)  # rows of which many want the same read it once
        for place in gathered:  # each has its share
            sizes[place] = read * sizes[place] // whole
        return sizes

    def _pool_bytes(self, per_key: int, window: int, batch: Batch) -> int:
        """Of one layer: each sequence's keys (or values) read once, the new ones written."""
        first = batch.positions[batch.query_starts[:-1]]
        read = batch.context_lens - (first + 1 - _seen(first + 1, window))
        return per_key * (int(read.sum()) + len(batch.tokens))

    def _state_bytes(self, per_sequence: int, batch: Batch) -> int:
        """Of one layer: the state of each sequence that goes on read, and each one's written."""
        return per_sequence * (int((batch.positions[batch.query_starts[:-1]] > 0).sum()) + len(batch.context_lens))


def uniform_batch(num_streams: int, num_tokens: int, depth: int) -> Batch:
    """A batch of streams that each bring so many tokens after `depth` others, as far as `StepCost` looks at one."""
    positions = np.tile(np.arange(depth, depth + num_tokens, dtype=np.int32), num_streams)
    starts = np.arange(num_streams + 1, dtype=np.int32) * num_tokens
    lens = np.full(num_streams, depth + num_tokens, np.int32)
    return Batch(np.zeros_like(positions), positions, (), starts.astype(np.int32), lens, (), starts[1:] - 1)


def _check_launches(kernel: PlanKernel, spec: KernelSpec) -> None:
    try:
        for blocks in spec.launches:
            evaluate(blocks, dict.fromkeys(kernel.sizes, 1))
    except ValueError as error:
        raise ArtifactError(f"{kernel.name}: {error}", file=MANIFEST, field="kernels.launches", fix=COMPILE_AGAIN) from None


def _seen(num_keys: Int32, window: int) -> Int32:
    """How many of its latest `num_keys` keys a query sees."""
    return np.minimum(num_keys, window) if window else num_keys
