"""`cupola check-kernels`: every kernel that this machine can run, against a float64 reference."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.progress import console_progress
from cupola.runtime.errors import EngineError, OptionError
from cupola.targets.cpu.isa import ISA, ISAS, runs_here

if TYPE_CHECKING:
    from cupola.compiler.kernel_check import KernelResult


OnlyISA = Annotated[str | None, typer.Option("--isa", help="Check this instruction set alone: avx2, …", show_default=False)]


def check_kernels(isa: OnlyISA = None, as_json: p.Json = False) -> None:
    """Run every kernel that this machine can run, on random data of many shapes, against a float64 reference."""
    isas = _chosen(isa)
    from cupola.compiler.kernel_check import check_kernels as check  # here, so that a mistyped option answers at once

    results = list(check(isas, console_progress()))
    if as_json:
        typer.echo(json.dumps([{**asdict(result), "is_right": result.is_right} for result in results]))
    else:
        _show(results)
    wrong = [f"{result.kernel} ({result.target})" for result in results if not result.is_right]
    if wrong:
        raise EngineError(f"{len(wrong)} of {len(results)} kernels are wrong on this machine: {', '.join(wrong)}")


def _chosen(name: str | None) -> list[ISA]:
    here = [isa for isa in ISAS if runs_here(isa)]
    chosen = here if name is None else [isa for isa in here if isa.name == name.removeprefix("cpu:")]
    if not chosen:
        problem = "none of the known instruction sets fits this machine" if name is None else f"{name!r} is none that this machine runs"
        raise OptionError(problem, field="isa", fix=f"one of {', '.join(isa.name for isa in here)}" if here else "see `cupola targets`")
    return chosen


def _show(results: list[KernelResult]) -> None:
    table = Table("kernel", "target", "error / allowed", "", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for result in results:
        table.add_row(result.kernel, result.target, f"{result.error:.3f}", "ok" if result.is_right else "WRONG")
    Console(highlight=False).print(table)
