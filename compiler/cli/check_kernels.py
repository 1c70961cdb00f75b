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
from cupola.targets.registry import list_targets

if TYPE_CHECKING:
    from cupola.compiler.kernel_check import KernelResult


OnlyTarget = Annotated[
    str | None, typer.Option("--target", help="Check this one alone, as `cupola targets` lists them.", show_default=False)
]


def check_kernels(target: OnlyTarget = None, as_json: p.Json = False) -> None:
    """Run every kernel that this machine can run, on random data of many shapes, against a float64 reference."""
    names = _chosen(target)
    from cupola.compiler.kernel_check import check_kernels as check  # here, so that a mistyped option answers at once
    from cupola.targets.registry import get_target

    targets = {found.spec.name: found for found in map(get_target, names)}  # several names may stand for one
    results = list(check(list(targets.values()), console_progress()))
    if as_json:
        typer.echo(json.dumps([{**asdict(result), "is_right": result.is_right} for result in results]))
    else:
        _show(results)
    wrong = [f"{result.kernel} ({result.target})" for result in results if not result.is_right]
    if wrong:
        raise EngineError(f"{len(wrong)} of {len(results)} kernels are wrong on this machine: {', '.join(wrong)}")


def _chosen(name: str | None) -> list[str]:
    here = [target.name for target in list_targets() if target.runs_here()]
    chosen = [known for known in here if name in (None, known)]
    if not chosen:
        problem = "this machine runs none of the known targets" if name is None else f"{name!r} is none that this machine runs"
        raise OptionError(problem, field="target", fix=f"one of {', '.join(here)}" if here else "see `cupola targets`")
    return chosen


def _show(results: list[KernelResult]) -> None:
    table = Table("kernel", "target", "error / allowed", "", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for result in results:
        table.add_row(result.kernel, result.target, f"{result.error:.3f}", "ok" if result.is_right else "WRONG")
    Console(highlight=False).print(table)
