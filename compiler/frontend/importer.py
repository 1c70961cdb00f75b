"""From a source to a Program: trace, translate, flatten, bind the weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tvm import IRModule

from cupola.compiler.frontend.distances import sees_distances_only
from cupola.compiler.frontend.first_tokens import check_first_tokens
from cupola.compiler.frontend.state import expanded_notes, kv_layout
from cupola.compiler.frontend.text_path import parts_of
from cupola.compiler.frontend.trace import TracedModel, trace
from cupola.compiler.frontend.translate import INPUTS, translate
from cupola.compiler.options import CompileOptions
from cupola.compiler.pipeline import Dumps, import_passes, run_passes
from cupola.compiler.program import Program
from cupola.compiler.progress import Progress
from cupola.compiler.sources import Source, bind_weights, left_out_tensors, text_fields, unused_tensors
from cupola.passes.rewrite import shape_of
from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.errors import OptionError

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_DEFAULT_CONTEXT = 2048  # for models whose positions have no limit (ALiBi) and whose configuration names none


def import_model(
    source: Source, options: CompileOptions, kv_dtype: str, latents: bool, progress: Progress, dumps: Dumps | None = None
) -> Program:
    """Imports `source` without reading its weights; `kv_dtype` is numpy's name of what K and V are stored as, and `latents` says whether
    attention knows rows that both are made of.

    Raises:
        SourceError, UnsupportedError, OptionError: as their docstrings say.
    """
    context = _context_length(source, options.context)
    with progress.stage("Tracing the model"):
        traced = trace(source.config, source.name, context, functools.partial(bind_weights, source), options.draft_vocabulary)
        context = _within_positions(context, traced.max_positions, options.context)
    with progress.stage("Importing to Relax"):
        mod = run_passes(translate(traced, source.name), import_passes(latents), dumps)
        kv = kv_layout(mod, kv_dtype, options.block_size, source.name)
        expanded = [] if latents else expanded_notes(mod, kv, source.name)
    names = [param.name for param in mod["forward"].params[len(INPUTS) :]]
    weights = {name: traced.weights[traced.tied.get(name, name)] for name in names}
    config = _model_config(source, mod, context, traced.padding, draft_only=options.draft_vocabulary is not None)
    if options.draft_vocabulary is not None:
        check_first_tokens(options.draft_vocabulary, config.vocab_size, source.name)
    return Program(mod, weights, kv, config, (*source.notes, *_notes(traced, source), *expanded))


def _notes(traced: TracedModel, source: Source) -> list[str]:
    model_type = source.config["model_type"]
    aside = left_out_tensors(source, traced.naming, traced.left_out)
    unused = [name for name in unused_tensors(source, traced.weights, traced.tied) if name not in aside]
    verified = [] if traced.family else [f"the family {model_type} is not verified: compare its answers before you rely on them"]
    return (
        verified
        + list(traced.notes)
        + _text_notes(traced, model_type, aside)
        + ([f"the model does not use {len(unused)} of the checkpoint's tensors, such as {unused[0]}"] if unused else [])
    )


def _text_notes(traced: TracedModel, model_type: str, aside: Mapping[str, str]) -> list[str]:
    """Says that a model of text and images takes text alone, and which tensors that leaves out."""
    if not traced.left_out:
        return []
    count = f", and {len(aside)} tensors of the checkpoint are left out" if aside else ""
    return [f"this is the text model of {model_type} alone: tokens do not reach {parts_of(traced.left_out)}{count}"]


def _context_length(source: Source, wanted: int | None) -> int:
    limit = _context_limit(text_fields(source.config))
    if wanted is not None and limit is not None and wanted > limit:
        raise OptionError(f"is {wanted}, but the model was made for {limit} tokens", field="context", fix=f"give {limit} or less")
    return wanted or limit or _DEFAULT_CONTEXT


def _within_positions(context: int, limit: int | None, wanted: int | None) -> int:
    """`context`, or fewer tokens where the model's table of positions ends before."""
    if limit is None or context <= limit:
        return context
    if wanted is not None:
        raise OptionError(f"is {wanted}, but the model has positions for {limit} tokens", field="context", fix=f"give {limit} or less")
    return limit


def _model_config(source: Source, mod: IRModule, context: int, padding: int | None, *, draft_only: bool) -> ModelConfig:
    text = text_fields(source.config)
    stops = _token_ids(source.generation_config.get("eos_token_id", text.get("eos_token_id")))
    bos = _token_ids(source.generation_config.get("bos_token_id", text.get("bos_token_id")))
    vocab_size = shape_of(mod["forward"].body.body)[1]
    stops, bos = (tuple(token for token in ids if token < vocab_size) for ids in (stops, bos))
    relative = sees_distances_only(mod)
    return ModelConfig(source.config["model_type"], context, vocab_size, stops, bos[0] if bos else None, relative, padding, draft_only)


def _context_limit(config: Mapping[str, Any]) -> int | None:
    found = (config.get(name) for name in _CONTEXT_FIELDS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list | tuple) else [value]
    return tuple(token for token in ids if isinstance(token, int) and token >= 0)
