"""`cupola.compile`: one call from a checkpoint to an artifact."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import tvm

from cupola.compiler.artifact_writer import artifact_folder, list_files, write_manifest, write_texts, write_weights
from cupola.compiler.build import build_library, signature_of
from cupola.compiler.importer import DTYPES, import_model
from cupola.compiler.options import CompileOptions, short_name
from cupola.compiler.pipeline import Dumps, kernel_passes, pipeline, run_passes
from cupola.compiler.progress import Progress, default_progress
from cupola.compiler.sources import open_source
from cupola.compiler.weights import lift_weights
from cupola.runtime.artifact import FORMAT_VERSION, LIBRARY, Artifact, Limits, Manifest, SourceSpec
from cupola.runtime.environment import debug_level
from cupola.targets.registry import get_target


def compile(
    source: str | Path,
    *,
    target: str = "cpu",
    quant: str = "f32",
    out: str | Path | None = None,
    context: int | None = None,
    kv_dtype: str | None = None,
    block_size: int = 16,
    max_batch: int = 64,
    progress: Progress | None = None,
    extra_passes: Sequence[tvm.transform.Pass] = (),
) -> Artifact:
    """Compiles a model.

    Args:
        source: a Hugging Face folder, a GGUF file, a hub id or a built-in name.
        target: what to compile for, as `cupola targets` lists.
        quant: how weights are stored: f32, bf16 or f16.
        out: the artifact's folder; by default `<name>-<target>-<quant>` in the current one.
        context: tokens that a sequence may have; by default what the model was made for.
        kv_dtype: how K and V are stored; by default like the weights.
        block_size: tokens in a block of the K/V cache.
        max_batch: sequences that one step may hold.
        progress: what to report to.
        extra_passes: run after the operations were recognized, before the target's kernels replace them.

    Raises:
        InputError: naming the file, the field and the fix.
    """
    options = CompileOptions(target, quant, kv_dtype, context, block_size, max_batch)
    chosen, progress = get_target(target), progress or default_progress()
    folder = Path(out) if out is not None else Path(f"{short_name(source)}-{chosen.spec.name.replace(':', '-')}-{quant}")
    with artifact_folder(folder) as work:
        dumps = Dumps(work / "ir") if debug_level() >= 3 else None
        with progress.stage("Reading the source"):
            model = open_source(source)
        program = import_model(model, options, progress, dumps)
        with progress.stage("Running passes"):
            mod = run_passes(program.mod, pipeline(chosen, program.kv, DTYPES[quant], extra_passes), dumps)
            mod, weights = lift_weights(mod, program.weights)
            mod = run_passes(mod, kernel_passes(chosen), dumps)
        with progress.stage("Building kernels"):
            build_library(mod, chosen, work / LIBRARY, dumps)
        with progress.stage("Packing weights", sum(weight.spec.num_bytes for weight in weights)) as advance:
            places, shards = write_weights(work, weights, advance)
        write_texts(work, model)
        manifest = Manifest(
            FORMAT_VERSION, importlib.metadata.version("cupola"), str(tvm.__version__),
            SourceSpec(model.name, model.format, model.sha256), chosen.spec, quant, program.config, program.kv, Limits(max_batch),
            (signature_of(mod["forward"], "forward", [weight.spec for weight in weights]),),
            places, list_files(work, shards),
            tuple(sorted(var.name_hint for var, func in mod.functions_items() if isinstance(func, tvm.tirx.PrimFunc))),
            program.notes,
        )  # fmt: skip
        write_manifest(work, manifest)
    return Artifact(folder, manifest)
