"""The way from a source to an artifact, stage by stage. Reading `compile_to` top to bottom is reading the compiler."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import tvm

from cupola.compiler.artifact_folder import artifact_folder
from cupola.compiler.artifact_writer import list_files, outline_weights, printable, write_manifest, write_texts, write_weights
from cupola.compiler.auto_scheme import choose_scheme
from cupola.compiler.finished import origin_of
from cupola.compiler.frontend.importer import import_model
from cupola.compiler.kept_weights import column_orders, kept_notes, kept_weights
from cupola.compiler.options import CompileOptions
from cupola.compiler.pipeline import Dumps, pipeline, run_passes
from cupola.compiler.program import Program
from cupola.compiler.progress import Progress
from cupola.compiler.sources import Source, open_source
from cupola.compiler.sources.outline import OUTLINE
from cupola.compiler.variants import (
    build_variant,
    check_agreement,
    check_scheme,
    choose_kv_dtype,
    join_functions,
    join_kernels,
    lay_out_state,
    library_names,
)
from cupola.compiler.weights import PackedWeight, encoding_notes, lift_weights, overflow_notes
from cupola.passes.schemes import Scheme, scheme_of, use_name
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import FORMAT_VERSION, Limits, Manifest, SourceSpec
from cupola.runtime.environment import debug_level
from cupola.targets.registry import get_targets


def compile_to(
    folder: Path, source: str | Path, options: CompileOptions, progress: Progress, extra_passes: Sequence[tvm.transform.Pass] = ()
) -> Artifact:
    """Compiles `source` into the artifact `folder`, which appears only when it is whole. Raises InputError."""
    targets = get_targets(options.target, options.os)
    with artifact_folder(folder) as work:
        dumps = Dumps(folder.with_name(f"{folder.name}.ir")) if debug_level() >= 3 else None
        with progress.stage("Reading the source"):
            model = open_source(source)
        quant, why = choose_scheme(options.quant, model, targets[0])
        scheme = scheme_of(quant, options.embedding)
        check_scheme(scheme, targets)
        kv_dtype, why_kv = choose_kv_dtype(options.kv_dtype, scheme, targets)
        latents = all(target.abilities.latent_attention for target in targets)
        program = import_model(model, options, kv_dtype, latents, progress, dumps)
        kv = lay_out_state(program.kv, targets)
        with progress.stage("Running passes"):
            formats = {use_name(name, tensor.is_turned): tensor.stored_as for name, tensor in program.weights.items()}
            kept = kept_weights(scheme, model, program.weights, targets)
            lowered = [run_passes(program.mod, pipeline(target, kv, scheme, formats, extra_passes, kept), dumps) for target in targets]
            check_agreement(lowered, targets)
            lifted = [lift_weights(mod, {**program.weights, **column_orders(kept, program.weights)}) for mod in lowered]
            weights = lifted[0][1]
        with progress.stage("Building kernels"):
            files = [work / name for name in library_names(targets)]
            built = zip(lifted, targets, files, strict=True)
            variants = [build_variant(mod, target, weights, file, dumps) for (mod, _), target, file in built]
        with progress.stage("Hashing the source"):
            origin = "" if extra_passes else origin_of(model.sha256, options)  # nobody knows what further passes do
        with progress.stage("Packing weights", sum(weight.spec.num_bytes for weight in weights), "B") as advance:
            is_outline = model.format == OUTLINE
            places, shards = outline_weights(work, weights) if is_outline else write_weights(work, weights, advance, origin)
        write_texts(work, model)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            cupola_version=importlib.metadata.version("cupola"),
            tvm_version=str(tvm.__version__),
            source=SourceSpec(printable(model.name), model.format, model.sha256),
            libraries=tuple(variant.library for variant in variants),
            scheme=scheme.name,
            model=program.config,
            kv=kv,
            limits=Limits(options.max_batch),
            functions=(join_functions(variants),),
            weights=places,
            files=list_files(work, shards),
            kernels=join_kernels(variant.kernels for variant in variants),
            probes=join_kernels(variant.probes for variant in variants),
            notes=tuple(map(printable, (*program.notes, *why, *why_kv, *_weight_notes(scheme, model, program, weights)))),
        )
        write_manifest(work, manifest)
    return Artifact(folder, manifest)


def _weight_notes(scheme: Scheme, source: Source, program: Program, weights: Sequence[PackedWeight]) -> list[str]:
    """Notes on weights: how they were encoded, which were kept, which overflowed."""
    return encoding_notes(weights) + kept_notes(scheme, source, program.weights, weights) + overflow_notes(weights)
