"""Models as transformers can make them, tiny and random, against transformers: `docs/model_types.md` and the tables beside it.

    python benchmarks/sweep [--table variants] [--only llama,qwen3] [--missing] [--turn 0] [--check] [--jobs 2]

Without --check the results are recorded; with it they are held against the recorded ones, and nothing is written.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Annotated

import torch
import transformers
import typer
from case import NUM_DECODED, Result, run_case
from sweeps import SWEEPS, Sweep
from table import as_markdown, faults, read_results, write_results
from workers import LIMIT_SECONDS, run_cases

import cupola.compiler.driver  # noqa: F401  before the processes fork, so that they need not


def chosen(sweep: Sweep, only: Sequence[str], turn: int | None, missing: bool = False) -> list[str]:
    """The cases of a sweep to run; a turn takes only those that have a line."""
    names, recorded = [name for name in sweep.names if not only or name in only], read_results(sweep.results)
    if missing:
        names = [name for name in names if name not in recorded]
    return names if turn is None else [name for name in sweep.part(turn) if name in names and name in recorded]


def slowest_first(names: Sequence[str], recorded: dict[str, Result]) -> list[str]:
    """So that no job is left with a long case at the end."""
    return sorted(names, key=lambda name: -recorded[name].seconds if name in recorded else -LIMIT_SECONDS)


def main(
    table: Annotated[str | None, typer.Option(help=f"{', '.join(each.name for each in SWEEPS)}; all of them.", show_default=False)] = None,
    only: Annotated[str | None, typer.Option(help="Some cases, separated by commas.", show_default=False)] = None,
    turn: Annotated[
        int | None,
        typer.Option(min=0, help="Only a part of the cases that no test compares, which one by this number.", show_default=False),
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Those that the table has no line of.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Hold the results against the recorded ones, and write nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cases at once.")] = 1,
) -> None:
    """Compile and compare the cases of every table."""
    torch.set_num_threads(1)
    sweeps = [sweep for sweep in SWEEPS if table in (None, sweep.name)]
    wanted = [name.strip() for name in only.split(",")] if only else []
    if not sweeps:
        raise typer.BadParameter(f"there is no table {table}", param_hint="--table")
    if unknown := [name for name in wanted if not any(name in sweep.names for sweep in sweeps)]:
        raise typer.BadParameter(f"{', '.join(unknown)}: no table has a case of that name", param_hint="--only")
    problems = [fault for sweep in sweeps for fault in run(sweep, chosen(sweep, wanted, turn, missing), check, jobs)]
    for problem in problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(1 if problems else 0)


def run(sweep: Sweep, names: Sequence[str], check: bool, jobs: int) -> list[str]:
    """Runs cases of a sweep, and records their results, or returns why they may not stand."""
    recorded, found, problems = read_results(sweep.results), dict[str, Result](), list[str]()
    for number, result in enumerate(run_cases(slowest_first(names, recorded), jobs, functools.partial(run_case, sweep)), 1):
        found[result.name] = result
        error = "" if result.error is None else f"{result.error:.1e}"
        print(f"{number:3}/{len(names)} {result.name:24} {result.outcome:12} {result.seconds:5.1f} s {error:8}{result.reason}", flush=True)
        if check:
            problems += faults(result, recorded.get(result.name))
        else:
            record(sweep, recorded | found)  # at once, so that nothing is lost where a long sweep is ended
    return problems


def record(sweep: Sweep, results: dict[str, Result]) -> None:
    """Writes the results and the table, without cases that are no longer there."""
    kept = {name: results[name] for name in sweep.names if name in results}
    write_results(sweep.results, kept)
    sweep.table.write_text(as_markdown(sweep, kept, transformers.__version__, NUM_DECODED), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
