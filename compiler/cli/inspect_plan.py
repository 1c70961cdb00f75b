"""`cupola inspect --plan`: what an artifact's libraries do in a step, call by call."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.plan import Place, Plan, PlanBuffer, PlanCall
from cupola.runtime.artifact.read import read_plan
from cupola.runtime.artifact.tensors import TensorSpec


def show_plans(artifact: Artifact, *, as_json: bool) -> None:
    """Prints the plan of each library. Raises ArtifactError."""
    forward = artifact.manifest.function("forward")
    plans = {library.file: read_plan(artifact.path / library.plan, forward) for library in artifact.manifest.libraries}
    if as_json:
        typer.echo(json.dumps({file: asdict(plan) for file, plan in plans.items()}))
        return
    for file, plan in plans.items():
        typer.echo("\n".join(lines_of(file, plan, forward.inputs)))


def lines_of(file: str, plan: Plan, inputs: tuple[TensorSpec, ...]) -> list[str]:
    """A plan for people; `inputs` are those of `forward`."""
    count = len({call.kernel for call in plan.calls})
    lines = [f"{file}: {len(plan.calls)} calls of {count} kernels; sizes {', '.join(plan.dims)}; ABI {plan.abi}", "", "workspace"]
    for i, size in enumerate(plan.storages):
        lines.append(f"  {i:>3}  {size} bytes")
        lines += [f"       {_buffer(buffer)}" for buffer in plan.buffers if buffer.storage == i]
    if plan.constants:
        lines += ["", "constants", *(f"       {_tensor(constant)}" for constant in plan.constants)]
    return [*lines, "", "calls", *(f"  {i:>3}  {_call(call, plan, inputs)}" for i, call in enumerate(plan.calls)), ""]


def _buffer(buffer: PlanBuffer) -> str:
    place = "" if buffer.offset == 0 else f", {buffer.offset} bytes in"
    return f"{_tensor(buffer)}{place}, calls {buffer.first} to {buffer.last}"


def _tensor(tensor: TensorSpec | PlanBuffer) -> str:
    return f"{tensor.name}: {tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _call(call: PlanCall, plan: Plan, inputs: tuple[TensorSpec, ...]) -> str:
    def name(place: Place) -> str:
        return plan.tensor(place, inputs).name

    return f"{call.kernel}({', '.join([*map(name, call.pointers), *map(str, (*call.numbers, *call.sizes))])})"
