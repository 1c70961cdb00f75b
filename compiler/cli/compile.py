"""`cupola compile`: from a source to an artifact."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

import cupola
from cupola.compiler.cli import parameters as p
from cupola.compiler.cli.progress import console_progress
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import NOT_HASHED
from cupola.runtime.errors import one_line

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="The artifact's folder (default: named after the source, here).", show_default=False)
]


def compile_model(
    source: p.Source,
    out: Out = None,
    target: p.Target = None,
    quant: p.Quant = None,
    embedding: p.Embedding = None,
    kv_dtype: p.KVDtype = None,
    context: p.Context = None,
    block_size: p.BlockSize = None,
    max_batch: p.MaxBatch = None,
    os: p.OperatingSystem = None,
    draft_vocabulary: p.DraftVocabulary = None,
    as_json: p.Json = False,
) -> None:
    """Compile a model for this machine, or another one."""
    options = p.compile_options(target, quant, embedding, kv_dtype, context, block_size, max_batch, os, draft_vocabulary)
    start = time.perf_counter()
    artifact = cupola.compile(
        source,
        target=options.target,
        quant=options.quant,
        embedding=options.embedding,
        out=out,
        context=options.context,
        kv_dtype=options.kv_dtype,
        block_size=options.block_size,
        max_batch=options.max_batch,
        os=options.os,
        draft_vocabulary=options.draft_vocabulary,
        progress=console_progress(),
    )
    _report(artifact, time.perf_counter() - start, as_json)


def _report(artifact: Artifact, seconds: float, as_json: bool) -> None:
    manifest = artifact.manifest
    num_bytes = sum(file.num_bytes for file in manifest.files)
    if as_json:
        typer.echo(
            json.dumps({"artifact": str(artifact.path), "num_bytes": num_bytes, "seconds": round(seconds, 3), "notes": manifest.notes})
        )
        return
    for note in manifest.notes:
        print("note:", one_line(note), file=sys.stderr)
    is_outline = any(file.sha256 == NOT_HASHED for file in manifest.files)
    then = f"inspect {artifact.path} --roofline h100" if is_outline else f"run {artifact.path}"
    print(f"{artifact.path}: {num_bytes / 1e6:.0f} MB in {seconds:.1f} s; now `cupola {then}`")
