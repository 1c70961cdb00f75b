"""`cupola inspect --roofline`: what a step moves, multiplies and launches, and how fast a machine can be at it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

import cupola
from cupola.compiler.cli.lists import table
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.read import read_plan

if TYPE_CHECKING:
    from cupola import Machine, StepWork

CONTEXT, PROMPT = 1024, 512  # tokens, if nobody says
HEAD = ["kernel", "calls", "launches", "MB", "Mop", "multiplies in", "µs"]


def show_roofline(
    artifact: Artifact, machine_name: str, *, context: int, num_streams: int, prompt: int, step_tokens: int, as_json: bool
) -> None:
    """Prints a decode step and a prompt of each library. Raises ArtifactError, OptionError."""
    machine, manifest = cupola.find_machine(machine_name), artifact.manifest
    forward = manifest.function("forward")
    found: dict[str, dict[str, StepWork]] = {}
    for library in manifest.libraries:
        plan = read_plan(artifact.path / library.plan, forward)
        decode, prefill = cupola.decode_work(manifest, plan, num_streams, context), cupola.prompt_work(manifest, plan, prompt, step_tokens)
        found[library.target.name] = {
            f"a step of {num_streams} stream{'s' * (num_streams > 1)}, each of {context} tokens": decode,
            f"a prompt of {prompt} tokens, {min(prompt, step_tokens)} in a step": prefill,
        }
    if as_json:
        listed = [
            {"target": target, "decode": as_dict(decode, machine), "prompt": as_dict(prefill, machine)}
            for target, (decode, prefill) in ((target, works.values()) for target, works in found.items())
        ]
        asked = {"context": context, "num_streams": num_streams, "prompt": prompt, "step_tokens": step_tokens}
        typer.echo(json.dumps({"machine": asdict(machine), **asked, "libraries": listed}))
        return
    typer.echo(
        f"{machine.name}: {machine.bytes_per_second / 1e9:.0f} GB/s, {machine.matrix / 1e12:.0f} Tflop/s in matrix units, "
        f"{machine.vector / 1e12:.0f} outside of them; {1e6 * machine.launch_seconds:.1f} µs a launch"
    )
    for target, works in found.items():
        for title, work in works.items():
            typer.echo(f"\n{target}: {title}\n\n{_kernels(work, machine)}\n\n{_summary(work, machine)}")


def as_dict(work: StepWork, machine: Machine) -> dict[str, object]:
    """All figures of a step or a prompt; seconds are the bound's, then the model's."""
    cost, bound, seconds = work.cost, work.bound_seconds(machine), work.seconds(machine)
    return {
        **asdict(cost),
        "num_bytes": cost.num_bytes,
        "num_tokens": work.num_tokens,
        "bound_by": work.bound_by(machine),
        "bound_seconds": bound,
        "bound_tokens_per_second": work.num_tokens / bound,
        "seconds": seconds,
        "tokens_per_second": work.num_tokens / seconds,
        "share_of_bandwidth": work.memory_seconds(machine) / seconds,
        "share_of_matrix_peak": cost.num_operations / machine.matrix / seconds,
        "kernels": [{**asdict(kernel), "seconds": kernel.seconds(machine)} for kernel in work.kernels],
    }


def _kernels(work: StepWork, machine: Machine) -> str:
    rows = []
    for kernel in sorted(work.kernels, key=lambda kernel: -kernel.seconds(machine)):
        cost, multiplies = kernel.cost, kernel.arithmetic if kernel.cost.num_operations else ""
        amounts = [f"{cost.num_bytes / 1e6:.2f}", f"{cost.num_operations / 1e6:.1f}"]
        rows.append(
            [kernel.name, str(kernel.num_calls), str(cost.num_launches), *amounts, multiplies, f"{1e6 * kernel.seconds(machine):.1f}"]
        )
    return table(HEAD, rows)


def _summary(work: StepWork, machine: Machine) -> str:
    cost, figures = work.cost, as_dict(work, machine)
    parts = [
        f"{name} {size / 1e6:.1f} MB"
        for name, size in (("weights", cost.weight_bytes), ("K/V", cost.kv_bytes), ("the rest", cost.other_bytes))
    ]
    return (
        f"{cost.num_bytes / 1e6:.1f} MB ({', '.join(parts)}), {cost.num_operations / 2e9:.1f} billion multiply-adds, "
        f"{cost.num_launches} launches\n"
        f"bound by {figures['bound_by']}: {1e3 * work.bound_seconds(machine):.2f} ms, {figures['bound_tokens_per_second']:.0f} tokens/s\n"
        f"by kernels and launches: {1e3 * work.seconds(machine):.2f} ms, {figures['tokens_per_second']:.0f} tokens/s, "
        f"{figures['share_of_bandwidth']:.0%} of bandwidth, {figures['share_of_matrix_peak']:.0%} of the matrix peak"
    )
