"""The plan of a compiled library: `forward` as a straight line of kernel calls over memory, in `plan.json` beside the manifest.

The library does what the plan says in one native function. Who reads the plan can call single kernels, say what a call was given and
reckon what memory a step takes. Sizes are numbers or expressions over `dims` (`evaluate`).

The library exports

    const int32_t cupola_abi                                       this plan's `abi`
    int32_t cupola_set_threads(int32_t count)                      how many threads there are now
    void cupola_set_cores(const int32_t *cores, int32_t count)     which cores they run on; 0 are any (libraries for CPUs)
    void cupola_set_power_saver(int32_t is_on)                     whether those that wait sleep (libraries for CPUs)
    void cupola_share_turn(int64_t *word)                          where libraries say whose step began last (libraries for CPUs)
    int64_t cupola_workspace_bytes(const int64_t *dims)            memory for a step; it begins at a multiple of ALIGNMENT
    int32_t cupola_run(int64_t times, const int64_t *dims, void *const *inputs, void *workspace, int64_t *clock)
    int32_t cupola_run_calls(int64_t first, int64_t last, const int64_t *dims, void *const *inputs, void *workspace)
    int32_t cupola_kernel_NAME(pointers…, numbers…, sizes as int64_t…)

`inputs` are in the order of the manifest's `forward`, `dims` in that of the plan. Runs give 0, or 1 + the index of the call that failed;
kernels give 0 or another number. `clock` is null, or takes CLOCK_MONOTONIC in nanoseconds at the start and after each call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from cupola.runtime.artifact.expressions import evaluate
from cupola.runtime.artifact.tensors import ITEM_BYTES, TensorSpec

ABI = 1
ALIGNMENT = 64  # bytes, of storages in the workspace
INPUT, CONSTANT, BUFFER = "input", "constant", "buffer"


@dataclass(frozen=True)
class Place:
    """An argument of a call: an input of `forward`, a constant of the library or a buffer, by its index."""

    kind: str
    index: int


@dataclass(frozen=True)
class PlanKernel:
    """A kernel, or a probe, as the library exports it.

    Attributes:
        pointers: tensors that it takes; their shapes are over `sizes`.
        numbers: dtypes of the whole numbers that follow.
        sizes: names of the sizes that come last.
    """

    name: str
    pointers: tuple[TensorSpec, ...]
    numbers: tuple[str, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class PlanBuffer:
    """A tensor in one of the storages, `offset` bytes from its start; the calls from `first` to `last` use it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    storage: int
    offset: int | str
    first: int
    last: int


@dataclass(frozen=True)
class PlanCall:
    """A call of a kernel, in the order of its parameters."""

    kernel: str
    pointers: tuple[Place, ...]
    numbers: tuple[int | str, ...]
    sizes: tuple[int | str, ...]


@dataclass(frozen=True)
class PlanExit:
    """The end of a layer: before the call of that index, all that later calls read of the layers so far is in a buffer."""

    call: int
    buffer: int


@dataclass(frozen=True)
class Plan:
    """All that a library does in a step.

    Attributes:
        dims: the names of the sizes that a step brings.
        storages: bytes of each; they lie in the workspace one after the other, each from a multiple of ALIGNMENT.
        constants: arrays that the library holds.
        buffers: intermediate results; those that share memory are never used at once.
        kernels: all that the library exports, probes too.
        calls: what is called, in order.
        exits: the end of each layer, the last one's where the final norm and the vocabulary projection begin. A prefix of the model is the
            calls up to an exit, its buffer in place of the last one's, and the calls from there. None, if layers are not so apart.
    """

    abi: int
    dims: tuple[str, ...]
    storages: tuple[int | str, ...]
    constants: tuple[TensorSpec, ...]
    buffers: tuple[PlanBuffer, ...]
    kernels: tuple[PlanKernel, ...]
    calls: tuple[PlanCall, ...]
    exits: tuple[PlanExit, ...] = ()

    def kernel(self, name: str) -> PlanKernel:
        """The kernel called `name`; KeyError if there is none."""
        return {kernel.name: kernel for kernel in self.kernels}[name]

    def layout(self, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], int]:
        """Where in the workspace each storage begins, and how long it is."""
        starts, end = [], 0
        for storage in self.storages:
            starts.append(end)
            end += -(-evaluate(storage, sizes) // ALIGNMENT) * ALIGNMENT
        return tuple(starts), end

    def tensor(self, place: Place, inputs: Sequence[TensorSpec]) -> TensorSpec | PlanBuffer:
        """The tensor that stands there; `inputs` are those of the manifest's `forward`."""
        tensors: dict[str, Sequence[TensorSpec | PlanBuffer]] = {INPUT: inputs, CONSTANT: self.constants, BUFFER: self.buffers}
        return tensors[place.kind][place.index]

    def to_json(self) -> str:
        """The text of `plan.json`: a line for each storage, constant, buffer, kernel and call."""
        fields = []
        for name, value in asdict(self).items():
            lines = [json.dumps(item, separators=(",", ":")) for item in value] if isinstance(value, tuple) and value else None
            fields.append(f'"{name}": ' + (json.dumps(value) if lines is None else "[\n" + ",\n".join(lines) + "\n]"))
        return "{\n" + ",\n".join(fields) + "\n}\n"


def buffer_span(plan: Plan, index: int, sizes: Mapping[str, int]) -> tuple[int, str, tuple[int, ...]]:
    """Where in the workspace a buffer begins where sizes are these, its dtype and its shape."""
    buffer = plan.buffers[index]
    start = plan.layout(sizes)[0][buffer.storage] + evaluate(buffer.offset, sizes)
    return start, buffer.dtype, tuple(evaluate(size, sizes) for size in buffer.shape)


def num_bytes(tensor: TensorSpec | PlanBuffer, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor's data where its sizes are these."""
    return math.prod(evaluate(size, sizes) for size in tensor.shape) * ITEM_BYTES[tensor.dtype]
