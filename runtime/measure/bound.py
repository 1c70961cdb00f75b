"""The least time that a machine can take for a step, and a model of the time that it will take, from the plan alone.

The bound is the roofline's (Williams, Waterman and Patterson, CACM 52(4), 2009) over the whole step: its bytes at the memory's bandwidth,
or its operations at the matrix units' peak, whichever is longer. The model goes kernel by kernel: each takes its own bound, in the
arithmetic that it multiplies in, and then a launch. It knows nothing of caches, of kernels that are too small to fill the machine, or of
the time until the first bytes of a kernel come; measured times lie above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cupola.runtime.artifact.manifest import Manifest
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.measure.machines import Machine
from cupola.runtime.measure.step_cost import CallCost, StepCost, uniform_batch


@dataclass(frozen=True)
class KernelWork:
    """All calls of a kernel in a step, or in the steps of a prompt."""

    name: str
    arithmetic: str
    num_calls: int
    cost: CallCost

    def seconds(self, machine: Machine) -> float:
        """By the model."""
        bound = max(self.cost.num_bytes / machine.bytes_per_second, self.cost.num_operations / machine.peak(self.arithmetic))
        return bound + self.cost.num_launches * machine.launch_seconds


@dataclass(frozen=True)
class StepWork:
    """A decode step, or the steps of a prompt: `num_tokens` are those that come of it, or that the prompt has."""

    num_tokens: int
    kernels: tuple[KernelWork, ...]

    @property
    def cost(self) -> CallCost:
        """Of all kernels."""
        return _sum([kernel.cost for kernel in self.kernels])

    def bound_by(self, machine: Machine) -> str:
        """The limit of all of it: "memory" or "matrix"."""
        return "memory" if self.memory_seconds(machine) >= self.cost.num_operations / machine.matrix else "matrix"

    def memory_seconds(self, machine: Machine) -> float:
        """Seconds that its bytes take at the memory's bandwidth."""
        return self.cost.num_bytes / machine.bytes_per_second

    def bound_seconds(self, machine: Machine) -> float:
        """The least that it can take."""
        return max(self.memory_seconds(machine), self.cost.num_operations / machine.matrix)

    def seconds(self, machine: Machine) -> float:
        """By the model of kernels and launches."""
        return sum(kernel.seconds(machine) for kernel in self.kernels)


def decode_work(manifest: Manifest, plan: Plan, num_streams: int, context: int) -> StepWork:
    """A step in which each stream brings a token, the last of `context`."""
    return StepWork(num_streams, _step(StepCost(manifest, plan), manifest, plan, num_streams, 1, context - 1))


def prompt_work(manifest: Manifest, plan: Plan, num_tokens: int, step_tokens: int) -> StepWork:
    """The steps of a prompt, of at most `step_tokens` tokens each."""
    cost, found = StepCost(manifest, plan), dict[str, list[KernelWork]]()
    for start in range(0, num_tokens, step_tokens):
        for kernel in _step(cost, manifest, plan, 1, min(step_tokens, num_tokens - start), start):
            found.setdefault(kernel.name, []).append(kernel)
    return StepWork(num_tokens, tuple(map(_joined, found.values())))


def _step(cost: StepCost, manifest: Manifest, plan: Plan, num_streams: int, num_tokens: int, depth: int) -> tuple[KernelWork, ...]:
    batch, blocks = uniform_batch(num_streams, num_tokens, depth), -(-(depth + num_tokens) // manifest.kv.block_size)
    known = {"n": num_streams * num_tokens, "b": num_streams, "r": num_streams}
    sizes = {name: known.get(name, blocks) for name in plan.dims}  # what is left are those of tables and pools
    found: dict[str, list[KernelWork]] = {}
    for call in plan.calls:
        if (of_call := cost.of(call, sizes, batch)) is not None:
            found.setdefault(call.kernel, []).append(KernelWork(call.kernel, cost.arithmetic[call.kernel], 1, of_call))
    return tuple(map(_joined, found.values()))


def _joined(calls: Sequence[KernelWork]) -> KernelWork:
    return replace(calls[0], num_calls=sum(call.num_calls for call in calls), cost=_sum([call.cost for call in calls]))


def _sum(costs: Sequence[CallCost]) -> CallCost:
    return CallCost(*(sum(values) for values in zip(*(vars(cost).values() for cost in costs), strict=True)))
