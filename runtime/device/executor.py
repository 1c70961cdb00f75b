"""Runs a compiled artifact: `forward` over a library's C functions, its weights and its K/V pages."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cupola.runtime.artifact.arrays import Array, num_bytes, numpy_dtype
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.inputs import LIKELIEST, MAX_STEPS, input_line
from cupola.runtime.artifact.manifest import COMPILE_AGAIN, HOST, MANIFEST, DeviceSpec
from cupola.runtime.artifact.plan import Plan, buffer_span
from cupola.runtime.artifact.read import parse_plan
from cupola.runtime.artifact.tensors import KernelSpec, TensorSpec
from cupola.runtime.device.accelerator import Accelerator, AcceleratorOutput, open_device
from cupola.runtime.device.arguments import Arguments
from cupola.runtime.device.choose import choose_library
from cupola.runtime.device.host import HostDevice, HostOutput
from cupola.runtime.device.interface import Batch, Device, SamplingPlan, Tensor
from cupola.runtime.device.library import Library, load_library, read_hashed
from cupola.runtime.device.memory import check_budget
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.device.threads import DEFAULT_THREADS, ThreadOptions
from cupola.runtime.errors import ArtifactError, EngineError

SPARE_BYTES = 16 << 20  # of workspace, or of results, that are kept beside what a step needs
OnStep = Callable[[Sequence[int], Mapping[str, int]], None]


class NativeExecutor:
    """The compiled `forward`, its weights (mapped from the artifact, not copied) and its K/V pages.

    Made by `Opened`. Page memory is touched, and so taken from the system, only as blocks are written. `weights` stand in for the
    artifact's, by name.
    """

    def __init__(
        self,
        library: Library,
        artifact: Artifact,
        device: Device,
        num_blocks: Sequence[int],
        swap: SwapSpace,
        weights: Mapping[str, Tensor] | None = None,
        threads: ThreadOptions = DEFAULT_THREADS,
    ) -> None:
        self.num_blocks, self.num_swap_blocks, self.provide_swap = tuple(num_blocks), swap.num_blocks, swap.provide
        self.device, self._library = device, library
        self.num_threads = threads.apply(library)
        manifest, forward = artifact.manifest, artifact.manifest.function("forward")
        self._pools = device.page_pools(manifest.kv, num_blocks, swap)
        fixed = {**self._pools.tensors, **(device.map_weights(artifact) if weights is None else weights)}
        places = {spec.name: i for i, spec in enumerate(forward.inputs)}
        self._arguments = Arguments(forward.inputs, library.plan.dims)
        self._fixed_sizes = _bind_fixed(self._arguments, {places[name]: tensor for name, tensor in fixed.items()}, artifact)
        names = [spec.name for spec in forward.outputs]
        self._inputs = _StepInputs(device, [spec for spec in forward.inputs if spec.name not in {*fixed, *names}], places, artifact)
        self._results = _Results(device, forward.outputs, [places[name] for name in names])
        self._workspace = _Memory(device)
        self.max_steps = MAX_STEPS if "argmax" in names else 1
        self.num_layers = len(library.plan.exits) if device.shares_memory else 0
        self.draws_tokens = "draws" in places
        self.rounds_many = device.shares_memory  # GPUs' kernels choose by the rows of a sequence, not of a step
        self._on_step: OnStep | None = None
        self._is_bound = False

    def submit(self, batch: Batch, sampling: SamplingPlan) -> HostOutput | AcceleratorOutput:
        """As `Executor`: copies the batch's blocks, then runs the step to its end.

        Raises:
            EngineError: if the batch does not fit together, or the compiled code fails.
        """
        if not 1 <= sampling.num_steps <= self.max_steps:
            raise EngineError(f"{sampling.num_steps} steps at once, of at most {self.max_steps}")
        if sampling.num_layers is not None and not 1 <= sampling.num_layers < self.num_layers:
            raise EngineError(f"{sampling.num_layers} layers of {self.num_layers} can't run alone")
        if batch.copies:
            self._pools.copy_blocks(batch.copies)
        if self._inputs.hold(batch) or not self._is_bound:
            self._bind(batch)
        if sampling.num_layers is not None:
            self._run_first_layers(sampling.num_layers, sampling.num_steps, batch)
        elif self._on_step is None:
            self._library.run(sampling.num_steps, self._arguments, self._workspace.address, None)
        else:
            self._run_by_the_clock(sampling.num_steps, self._on_step)
        self.device.synchronize()
        return self._results.output()

    def read_block(self, group: int, block: int) -> bytes:
        """As `PagePools`."""
        return self._pools.read_block(group, block)

    def write_block(self, group: int, block: int, data: bytes | memoryview) -> bool:
        """As `PagePools`."""
        return self._pools.write_block(group, block, data)

    @property
    def plan(self) -> Plan:
        """The library's plan."""
        return self._library.plan

    def has_kernel(self, kernel: KernelSpec) -> bool:
        """True if the library that was loaded has it; others of the artifact may have more."""
        return any(known.name == kernel.name for known in self.plan.kernels)

    def run_kernel(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Runs a kernel of the library, such as a probe, that takes nothing but tensors. Raises EngineError."""
        self._library.run_kernel(name, tensors)

    @contextmanager
    def clocked(self, on_step: OnStep) -> Iterator[None]:
        """Within the context, reports of every step the nanoseconds of each call in the plan, and the step's sizes."""
        self._on_step = on_step
        try:
            yield
        finally:
            self._on_step = None

    def _bind(self, batch: Batch) -> None:
        """Takes in that a step has other sizes than the one before."""
        self._is_bound = False  # for the next step, should memory run out in between
        tensors = {**self._inputs.tensors(), **self._results.hold(len(batch.logit_rows))}
        self._arguments.bind(tensors, self._fixed_sizes)
        self._workspace.fit(self._library.workspace_bytes(self._arguments.dims))
        self._is_bound = True

    def _run_first_layers(self, num_layers: int, num_steps: int, batch: Batch) -> None:
        """Runs steps of a prefix of the model: what the last layer would hand to the head is brought there from an earlier one."""
        plan, library, address = self.plan, self._library, self._workspace.address
        source, target = plan.exits[num_layers - 1], plan.exits[-1]
        left, wanted = (self._workspace.view(*buffer_span(plan, end.buffer, self._arguments.sizes)) for end in (source, target))
        rows = batch.logit_rows if plan.buffers[target.buffer].shape[0] == "r" else slice(None)
        for _ in range(num_steps):
            library.run_calls(0, source.call, self._arguments, address)
            wanted[...] = left[rows]
            library.run_calls(target.call, len(plan.calls), self._arguments, address)

    def _run_by_the_clock(self, num_steps: int, on_step: OnStep) -> None:
        clock = (ctypes.c_int64 * (len(self.plan.calls) + 1))()
        for _ in range(num_steps):
            self._library.run(1, self._arguments, self._workspace.address, clock)
            on_step([end - start for start, end in pairwise(clock)], self._arguments.sizes)


class _StepInputs:
    """The inputs that every step brings, each in memory of its own, from which kernels may load whole vectors.

    Memory and tensors are kept: a decode step, which is shaped like the last one, only copies numbers.
    """

    def __init__(self, device: Device, specs: Sequence[TensorSpec], places: Mapping[str, int], artifact: Artifact) -> None:
        self._device = device
        self._places = [places[spec.name] for spec in specs]
        self._fields: list[tuple[int, int | None]] = []  # of Batch and, of what each state group has, the group
        for spec in specs:
            line = input_line(spec.name)
            if line is None or line.name not in Batch._fields:
                problem = f"takes {spec.name!r}, which nothing gives"
                raise ArtifactError(problem, file=artifact.path / MANIFEST, field="functions.forward", fix=COMPILE_AGAIN)
            self._fields.append((Batch._fields.index(line.name), int(spec.name.partition(".")[2]) if line.each_group else None))
        self._likeliest = np.array([LIKELIEST], np.int32) if any(spec.name == "draws" for spec in specs) else None
        self._memory = [device.zeros("int32", (1,)) for _ in specs]
        self._tensors, self._shapes = list(self._memory), [(-1,)] * len(specs)

    def hold(self, batch: Batch) -> bool:
        """Takes a step's arrays, over what was there before. Returns whether their shapes are new."""
        if self._likeliest is not None and batch.draws is None:
            batch = batch._replace(draws=self._likeliest.repeat(len(batch.logit_rows), axis=0))
        values: Sequence[Any] = batch  # arrays, or one for each group
        arrays = [values[i] if group is None else values[i][group] for i, group in self._fields]
        shapes = [array.shape for array in arrays]
        changed = shapes != self._shapes
        if changed:
            for i, shape in enumerate(shapes):
                if math.prod(shape) > self._memory[i].shape[0]:
                    self._memory[i] = self._device.zeros("int32", (math.prod(shape),))
                self._tensors[i] = self._device.head(self._memory[i], "int32", shape)
            self._shapes = shapes
        upload = self._device.upload
        for array, tensor in zip(arrays, self._tensors, strict=True):
            upload(array, tensor)
        return changed

    def tensors(self) -> dict[int, Tensor]:
        """The tensors by their places among the inputs."""
        return dict(zip(self._places, self._tensors, strict=True))


class _Results:
    """Memory that a step writes its results to, and the next one over them."""

    def __init__(self, device: Device, outputs: Sequence[TensorSpec], places: Sequence[int]) -> None:
        self._device, self._outputs, self._places = device, outputs, places
        self._memory = [_Memory(device) for _ in outputs]

    def hold(self, num_rows: int) -> dict[int, Tensor]:
        """Tensors of so many rows, by their places among the inputs of `forward`; `output` shows them."""
        tensors = [
            memory.tensor(spec.dtype, tuple(num_rows if isinstance(size, str) else size for size in spec.shape))
            for memory, spec in zip(self._memory, self._outputs, strict=True)
        ]
        self._tensors = {spec.name: tensor for spec, tensor in zip(self._outputs, tensors, strict=True)}
        self._shown = self._read() if self._device.shares_memory else None
        return dict(zip(self._places, tensors, strict=True))

    def output(self) -> HostOutput | AcceleratorOutput:
        """The step's results. What the model does not find in its logits is found here, step by step."""
        if isinstance(self._device, Accelerator) and "argmax" in self._tensors:
            return AcceleratorOutput(self._device, self._tensors)
        found = self._shown or self._read()
        logits, hidden = found["logits"], found.get("hidden")
        return HostOutput(logits, found["maxima"], found["argmax"], hidden) if "argmax" in found else HostOutput.of(logits, hidden)

    def _read(self) -> dict[str, Array]:
        return {name: self._device.download(tensor) for name, tensor in self._tensors.items()}


class _Memory:
    """Memory that is grown for steps that need more; what a large step took is given back when a smaller one needs much less."""

    def __init__(self, device: Device) -> None:
        self._device, self._whole = device, device.empty("uint8", (0,))

    @property
    def address(self) -> int:
        """Where it begins."""
        return self._whole.address

    def fit(self, num_bytes: int) -> None:
        """Makes it large enough, and not much too large."""
        if not 0 <= self._whole.shape[0] - num_bytes <= SPARE_BYTES:
            self._whole = self._device.empty("uint8", (num_bytes,))

    def view(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """A tensor `offset` bytes from its beginning, on a device that shares the host's memory."""
        part: Array = self._whole.memory[offset : offset + num_bytes(dtype, shape)]
        return part.view(numpy_dtype(dtype)).reshape(shape)

    def tensor(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """The beginning of it as a tensor."""
        self.fit(TensorSpec("", dtype, shape).num_bytes)
        return self._device.head(self._whole, dtype, shape)


def _bind_fixed(arguments: Arguments, tensors: Mapping[int, Tensor], artifact: Artifact) -> Mapping[str, int]:
    """Binds what stays from step to step; returns its sizes, such as the number of blocks."""
    try:
        return arguments.bind(tensors, {})
    except EngineError as error:
        raise ArtifactError(str(error), file=artifact.path / MANIFEST, field="functions.forward.inputs", fix=COMPILE_AGAIN) from None


@dataclass(frozen=True)
class Opened:
    """An artifact's library, loaded, and the device that it is for."""

    artifact: Artifact
    library: Library
    device: Device

    def executor(
        self,
        num_blocks: Sequence[int],
        swap: SwapSpace | None = None,
        weights: Mapping[str, Tensor] | None = None,
        threads: ThreadOptions = DEFAULT_THREADS,
    ) -> NativeExecutor:
        """An executor with so many blocks in each group's pools; `swap` is where blocks can be put aside, None is nowhere.

        `weights` stand in for the artifact's, by name.

        Raises:
            OptionError: the blocks take more memory than there is; or the library can't do what `threads` say.
        """
        kv = self.artifact.manifest.kv
        check_budget(kv, num_blocks, self.device.memory_budget())
        swap = swap or SwapSpace(kv, [0] * len(num_blocks))
        return NativeExecutor(self.library, self.artifact, self.device, num_blocks, swap, weights, threads)


def open_library(artifact: Artifact, device: str | None = None) -> Opened:
    """Loads the library for `device`, or the best that runs here.

    Raises:
        ArtifactError: if it was compiled for other machines, or can't be loaded.
        OptionError: if there is no library for `device`, or this machine can't run it.
    """
    manifest, chosen = artifact.manifest, choose_library(artifact, device)
    hashes = {entry.name: entry.sha256 for entry in manifest.files}
    plan_file, file = artifact.path / chosen.plan, artifact.path / chosen.file
    plan = parse_plan(read_hashed(plan_file, hashes[chosen.plan]).decode("utf-8", "replace"), plan_file, manifest.function("forward"))
    try:
        loaded = load_library(file, hashes[chosen.file], ctypes.CDLL)
    except OSError as error:
        raise ArtifactError(f"can't be loaded: {str(error).strip().splitlines()[-1]}", file=file, fix=COMPILE_AGAIN) from error
    return Opened(artifact, Library(loaded, plan, file), _device(loaded, chosen.target))


def load(artifact: Artifact, num_blocks: Sequence[int], device: str | None = None, swap: SwapSpace | None = None) -> NativeExecutor:
    """An executor for an artifact. Raises as `open_library` and `Opened.executor`."""
    return open_library(artifact, device).executor(num_blocks, swap)


def _device(library: ctypes.CDLL, target: DeviceSpec) -> Device:
    if target.kind == HOST:
        return HostDevice()
    open_device(library, target.name)
    return Accelerator(library)
