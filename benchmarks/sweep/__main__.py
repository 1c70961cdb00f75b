"""Every causal language model of transformers, as a tiny random checkpoint, against transformers: `docs/model_types.md`.

    python benchmarks/sweep [--only llama,qwen3] [--missing] [--turn 0] [--check] [--jobs 2]

Without --check the results are recorded; with it they are held against the recorded ones, and nothing is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from case import NUM_DECODED, Result, run_case
from table import as_markdown, faults, read_results, write_results
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from workers import LIMIT_SECONDS, run_cases

import cupola.compiler.driver  # noqa: F401  before the processes fork, so that they need not
from cupola.models import FAMILIES

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "model_types.json"
TABLE = HERE.parents[1] / "docs" / "model_types.md"
NUM_TURNS = 4


def model_types() -> list[str]:
    """Every `model_type` that transformers has a causal language model for, in order."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def chosen(only: str | None, turn: int | None, missing: bool = False) -> list[str]:
    """The model types to run. Raises typer.BadParameter."""
    known = model_types()
    names = only.split(",") if only else known
    if missing:
        recorded = read_results(RESULTS)
        names = [name for name in names if name not in recorded]
    if unknown := sorted(set(names) - set(known)):
        raise typer.BadParameter(f"{', '.join(unknown)}: transformers has no causal language model of that name", param_hint="--only")
    if turn is None:
        return names
    families = {family.model_type for family in FAMILIES}  # which the tests compare
    return [name for name in names if name not in families][turn % NUM_TURNS :: NUM_TURNS]


def slowest_first(names: Sequence[str], recorded: dict[str, Result]) -> list[str]:
    """So that no job is left with a long case at the end."""
    return sorted(names, key=lambda name: -recorded[name].seconds if name in recorded else -LIMIT_SECONDS)


def main(
    only: Annotated[str | None, typer.Option(help="Some model types, separated by commas.", show_default=False)] = None,
    turn: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Of the types that are no verified family one in {NUM_TURNS}: turn TURN modulo {NUM_TURNS}.",
            show_default=False,
        ),
    ] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Those that the table has no line of.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Hold the results against the recorded ones, and write nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cases at once.")] = 1,
) -> None:
    """Compile and compare every model type."""
    torch.set_num_threads(1)
    recorded = read_results(RESULTS)
    names, found, problems = chosen(only, turn, missing), dict[str, Result](), list[str]()
    for number, result in enumerate(run_cases(names if only else slowest_first(names, recorded), jobs, run_case), 1):
        found[result.model_type] = result
        error = "" if result.error is None else f"{result.error:.1e}"
        print(
            f"{number:3}/{len(names)} {result.model_type:24} {result.outcome:12} {result.seconds:5.1f} s {error:8}{result.reason}",
            flush=True,
        )
        if check:
            problems += faults(result, recorded.get(result.model_type))
        else:
            record(recorded | found)  # at once, so that nothing is lost where a long sweep is ended
    for problem in problems:
        print(problem, file=sys.stderr)
    raise typer.Exit(1 if problems else 0)


def record(results: dict[str, Result]) -> None:
    """Writes the results and the table, without types that transformers no longer has."""
    kept = {name: results[name] for name in model_types() if name in results}
    write_results(RESULTS, kept)
    families = [family.model_type for family in FAMILIES]
    TABLE.write_text(as_markdown(kept, families, transformers.__version__, NUM_DECODED), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
