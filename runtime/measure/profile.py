"""Where a step's time goes: each kernel's seconds, bytes and operations, beside what the machine could do at best.

The roofline (Williams, Waterman and Patterson, CACM 52(4), 2009): a kernel can't take less time than its bytes at the
memory's bandwidth, nor than its operations at the arithmetic's peak. Its share of the roofline is the larger of the two
divided by its time. What lies in a cache can be read faster than memory, so that shares above 1 are possible.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from cupola.runtime.device.executor import NativeExecutor
from cupola.runtime.device.interface import Batch, SamplingPlan, StepHandle
from cupola.runtime.errors import OptionError
from cupola.runtime.measure.benchmark import Benchmark, SpeedTest
from cupola.runtime.measure.step_cost import StepCost

DECODE_STEPS = 4  # of a repeat, each a sample of its own
READ_BYTES = 256 << 20  # more than caches hold
PROBE_REPEATS = 10
TASKS_PER_THREAD = 8
MEMORY = "memory"


@dataclass(frozen=True)
class Roofline:
    """The machine's best rates with `threads` threads: bytes read from memory a second, operations a second by arithmetic."""

    threads: int
    bytes_per_second: float
    operations_per_second: Mapping[str, float]

    def best(self, other: Roofline) -> Roofline:
        """The better of two measurements, each figure on its own: what else the machine does only ever makes them worse."""
        peaks = {name: max(peak, other.operations_per_second[name]) for name, peak in self.operations_per_second.items()}
        return Roofline(self.threads, max(self.bytes_per_second, other.bytes_per_second), peaks)


@dataclass(frozen=True)
class KernelTime:
    """All calls of one kernel in a step (or a prompt). Bytes and operations are what it can't do without."""

    name: str
    num_calls: int
    seconds: float
    num_bytes: int
    num_operations: int
    arithmetic: str

    def bound(self, roofline: Roofline) -> tuple[str, float]:
        """The limit, "memory" or an arithmetic, and the least seconds that it allows."""
        limits = {MEMORY: self.num_bytes / roofline.bytes_per_second}
        if peak := roofline.operations_per_second.get(self.arithmetic):
            limits[self.arithmetic] = self.num_operations / peak
        return max(limits.items(), key=lambda limit: limit[1])


@dataclass(frozen=True)
class Profile:
    """The fastest decode step, or whole prompt: what else the machine does only ever adds time.

    Attributes:
        seconds: all of it, measured without looking at kernels.
        model_seconds: in calls of the model; what is left is scheduling and sampling, in Python.
        kernels: the longest first; of the one step, among those that were looked at, that spent the least time in kernels.
    """

    test: SpeedTest
    seconds: float
    model_seconds: float
    kernels: tuple[KernelTime, ...]

    @property
    def kernel_seconds(self) -> float:
        """In all kernels together."""
        return sum(kernel.seconds for kernel in self.kernels)


def profile(benchmark: Benchmark, test: SpeedTest, repeats: int) -> Profile:
    """Measures `test` with and without looking at its kernels, in turns. For "tg" its `num_tokens` is not looked at."""
    if not benchmark.artifact.manifest.kernels:
        raise OptionError("the manifest lists none", file=benchmark.artifact.path, field="kernels", fix="compile the model again")
    watch = _Watch(benchmark)
    plain: list[_Sample] = []
    watched: list[_Sample] = []
    for _ in range(repeats):
        plain += watch.samples(test, look=False)
        watched += watch.samples(test, look=True)
    fastest = min(plain, key=lambda sample: sample.seconds)
    kernels = min(watched, key=lambda sample: sum(kernel.seconds for kernel in sample.kernels.values())).kernels.values()
    return Profile(test, fastest.seconds, fastest.model_seconds, tuple(sorted(kernels, key=lambda kernel: -kernel.seconds)))


def measure_roofline(benchmark: Benchmark) -> Roofline:
    """Runs the probes that the artifact's library carries; the best of several runs is what the machine can do."""
    executor, threads = benchmark.executor, benchmark.executor.num_threads
    tasks = threads * TASKS_PER_THREAD
    found: dict[str, float] = {}
    for probe in filter(executor.has_kernel, benchmark.artifact.manifest.probes):  # those of all the artifact's libraries
        reads = not probe.cost.operations_per_row
        amount = READ_BYTES if reads else tasks * probe.cost.operations_per_row
        seconds = _fastest(executor, probe.name, READ_BYTES // 4 if reads else 1024, tasks)
        found[MEMORY if reads else probe.cost.arithmetic] = amount / seconds
    if MEMORY not in found:
        raise OptionError("the artifact has no probes", file=benchmark.artifact.path, field="kernels", fix="compile the model again")
    return Roofline(threads, found.pop(MEMORY), found)


def _fastest(executor: NativeExecutor, probe: str, size: int, num_tasks: int) -> float:
    """The least seconds that a probe takes on float32 ones, each written to, so that they lie in memory of their own."""
    tensors, seconds = [executor.device.empty("float32", (count,)) for count in (size, num_tasks)], []
    for tensor in tensors:
        executor.device.upload(np.ones(tensor.shape, np.float32), tensor)
    for _ in range(PROBE_REPEATS):
        start = time.perf_counter()
        executor.run_kernel(probe, tensors)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@dataclass(frozen=True)
class _Sample:
    """A decode step, or a prompt of several steps."""

    seconds: float
    model_seconds: float
    kernels: Mapping[str, KernelTime]


class _Watch:
    """Stands before the executor, and times its calls and those of kernels."""

    def __init__(self, benchmark: Benchmark) -> None:
        executor = self._executor = benchmark.executor
        self.num_blocks, self.num_swap_blocks, self.provide_swap = executor.num_blocks, executor.num_swap_blocks, executor.provide_swap
        self.read_block, self.write_block = executor.read_block, executor.write_block
        self.max_steps = 1  # each is looked at
        self.num_layers = 0  # all of them are
        self.draws_tokens, self.rounds_many = executor.draws_tokens, executor.rounds_many
        self._benchmark, self._manifest = benchmark, benchmark.artifact.manifest
        self._cost = StepCost(self._manifest, executor.plan)
        self._clear()

    def samples(self, test: SpeedTest, *, look: bool) -> Iterator[_Sample]:
        """Runs `test` once, perhaps with a look at kernels: a sample for each of some decode steps, or one for the prompt."""
        if test.kind == "tg":
            test = replace(test, num_tokens=DECODE_STEPS)
        with self._benchmark.started(test) as engine, self._executor.clocked(self._on_step) if look else nullcontext():
            engine.executor = self
            try:
                while engine.has_unfinished_requests():
                    self._clear()
                    start = time.perf_counter()
                    engine.step()
                    while test.kind == "pp" and engine.has_unfinished_requests():
                        engine.step()
                    yield _Sample(time.perf_counter() - start, self._model_seconds, self._times)
            finally:
                engine.executor = self._executor

    def submit(self, batch: Batch, sampling: SamplingPlan) -> StepHandle:
        """As the executor; waits for the step."""
        self._batch = batch
        start = time.perf_counter()
        handle = self._executor.submit(batch, sampling)
        handle.result()
        self._model_seconds += time.perf_counter() - start
        return handle

    def _clear(self) -> None:
        self._model_seconds, self._times = 0.0, dict[str, KernelTime]()

    def _on_step(self, nanoseconds: Sequence[int], sizes: Mapping[str, int]) -> None:
        for call, duration in zip(self._executor.plan.calls, nanoseconds, strict=True):
            cost, name = self._cost.of(call, sizes, self._batch), call.kernel
            if cost is None:
                continue
            before = self._times.get(name, KernelTime(name, 0, 0.0, 0, 0, self._cost.arithmetic[name]))
            self._times[name] = replace(
                before,
                num_calls=before.num_calls + 1,
                seconds=before.seconds + 1e-9 * duration,
                num_bytes=before.num_bytes + cost.num_bytes,
                num_operations=before.num_operations + cost.num_operations,
            )
