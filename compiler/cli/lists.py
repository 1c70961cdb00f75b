"""`cupola models` and `cupola targets`: what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer

from cupola.compiler.cli import parameters as p
from cupola.targets.entry import BUILT
from cupola.targets.native.systems import SYSTEMS
from cupola.targets.registry import list_targets


def models(as_json: p.Json = False) -> None:
    """List the built-in models and the verified families."""
    from cupola.compiler.sources import BUILTINS
    from cupola.models import FAMILIES

    builtin = {name: model.about for name, model in BUILTINS.items()}
    if as_json:
        families = [{"model_type": family.model_type, "title": family.title} for family in FAMILIES]
        typer.echo(json.dumps({"builtin": builtin, "families": families}))
        return
    _print_table(("BUILT IN", ""), list(builtin.items()))
    typer.echo()
    _print_table(("MODEL TYPE", "FAMILY"), [(family.model_type, family.title) for family in FAMILIES])
    typer.echo("\nThese families are verified by tests. Other causal language models of transformers compile too, with a note.")


def targets(as_json: p.Json = False) -> None:
    """List what a model can be compiled for."""
    listed = [(target.name, target.runs_here(), target.level, target.description, dict(target.systems)) for target in list_targets()]
    if as_json:
        fields = ("name", "runs_here", "level", "description", "systems")
        typer.echo(json.dumps([dict(zip(fields, target, strict=True)) for target in listed]))
        return
    rows = [(name, "yes" if here else "no", level, about) for name, here, level, about, _ in listed]
    _print_table(("TARGET", "RUNS HERE", "TAKEN TO", ""), rows)
    typer.echo("\nA CPU's may be compiled for other systems too, as TARGET@SYSTEM:")
    for system in SYSTEMS:
        taken = [f"{name} ({level})" for name, *_, systems in listed if (level := systems.get(system, BUILT)) != BUILT]
        rest = [name for name, *_, systems in listed if systems.get(system) == BUILT]
        typer.echo(f"  {system}: {', '.join(taken)}{f'; {BUILT}: ' if rest else ''}{', '.join(rest)}")


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned to the right, as llama-bench's."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    rule = " | ".join("-" * (width - 1) + ":" for width in widths)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))
