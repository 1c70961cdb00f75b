"""`cupola models` and `cupola targets`: what there is."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer

from cupola.compiler.cli import parameters as p


def models(as_json: p.Json = False) -> None:
    """List the built-in models and the verified families."""
    from cupola.compiler.sources import BUILTIN_NAMES
    from cupola.models import FAMILIES

    if as_json:
        families = [{"model_type": family.model_type, "title": family.title} for family in FAMILIES]
        typer.echo(json.dumps({"builtin": list(BUILTIN_NAMES), "families": families}))
        return
    typer.echo(f"Built in: {', '.join(BUILTIN_NAMES)}\n")
    _print_table(("MODEL TYPE", "FAMILY"), [(family.model_type, family.title) for family in FAMILIES])
    typer.echo("\nThese are verified by tests. Other causal language models of transformers compile too, with a note.")


def targets(as_json: p.Json = False) -> None:
    """List what a model can be compiled for."""
    from cupola.targets import find_target, target_names

    found = [(name, find_target(name).spec) for name in target_names()]
    if as_json:
        typer.echo(
            json.dumps([{"name": name, "triple": spec.triple, "isa": spec.isa, "features": list(spec.features)} for name, spec in found])
        )
        return
    _print_table(("TARGET", "ISA", "TRIPLE", "FEATURES"), [(name, spec.isa, spec.triple, " ".join(spec.features)) for name, spec in found])


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
