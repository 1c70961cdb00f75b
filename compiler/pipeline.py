"""The pass pipeline: what happens to a model between import and code, in order."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import tvm
from tvm import IRModule, relax

from cupola.passes.add_in_place import add_in_place
from cupola.passes.drop_batch import drop_batch
from cupola.passes.find_argmax import find_argmax
from cupola.passes.find_maxima import find_maxima
from cupola.passes.fuse_attention_inputs import fuse_attention_inputs
from cupola.passes.fuse_epilogue import fuse_epilogue
from cupola.passes.fuse_gated_linear import fuse_gated_linear
from cupola.passes.fuse_gelu import fuse_gelu
from cupola.passes.fuse_layer_norm import fuse_layer_norm
from cupola.passes.fuse_linear import fuse_linear
from cupola.passes.fuse_norm import fuse_norm
from cupola.passes.fuse_rms_norm import fuse_rms_norm
from cupola.passes.fuse_rotary import fuse_rotary
from cupola.passes.join_projections import join_projections
from cupola.passes.keep_latents import keep_latents
from cupola.passes.keep_state import keep_state
from cupola.passes.lower_ops import lower_ops
from cupola.passes.narrow_activations import narrow_activations
from cupola.passes.order_columns import order_columns
from cupola.passes.page_attention import page_attention
from cupola.passes.pick_rows_early import pick_rows_early
from cupola.passes.quantize_weights import quantize_weights
from cupola.passes.sample_tokens import sample_tokens
from cupola.passes.schemes.base import Kept, Scheme
from cupola.passes.simplify import simplify
from cupola.passes.sink_transposes import sink_transposes
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.environment import debug_level
from cupola.targets.base import Target
from cupola.targets.ops import Argmax, BlockMaxima, Sample

Pass: TypeAlias = tvm.transform.Pass


def import_passes(latents: bool = True) -> list[Pass]:
    """The passes that make a traced model flat and plain; the K/V cache is read off the result.

    Without `latents`, keys and values that are made of one row a token are kept as they are made.
    """
    return [drop_batch(), simplify(), *([keep_latents()] if latents else [])]


def pipeline(
    target: Target,
    kv: KVSpec,
    scheme: Scheme,
    formats: Mapping[str, str] | None = None,
    extra: Sequence[Pass] = (),
    kept: Kept | None = None,
) -> list[Pass]:
    """From a flat model to calls of the target's kernels.

    Args:
        target: whose kernels are called.
        kv: the K/V cache.
        scheme: how weights are stored and multiplied.
        formats: what weights are stored as in their file, in ggml's terms, by parameter.
        extra: passes that see the recognized operations, norms among them, on weights in float32.
        kept: the weights that stay as their file has them.
    """
    kind_of = partial(_kind_of, scheme, formats or {}, kept := kept or Kept())
    return [
        # recognize what models spell out
        fuse_rms_norm(),
        fuse_layer_norm(),
        fuse_gelu(),
        fuse_rotary(),
        sink_transposes(),
        simplify(),
        # leave out what nobody reads
        pick_rows_early(),
        # make few and large operations of many small ones
        fuse_linear(),
        order_columns(kept.orders),
        fuse_gated_linear(kind_of),
        fuse_epilogue(),
        join_projections(kind_of),
        # say how it is stored
        page_attention(kv),
        keep_state(kv),
        simplify(),
        fuse_attention_inputs(),
        *extra,
        fuse_norm(),
        quantize_weights(scheme, formats, kept),
        narrow_activations(target),
        add_in_place(),
        *([find_maxima()] if target.implements(BlockMaxima) else []),
        *([find_argmax(kv)] if target.implements(Argmax) and target.implements(BlockMaxima) else []),
        *([sample_tokens()] if all(map(target.implements, (Sample, Argmax, BlockMaxima))) else []),
        lower_ops(target),
    ]


def _kind_of(scheme: Scheme, formats: Mapping[str, str], kept: Kept, weight: relax.Expr) -> str:
    """A name that weights share which may be joined."""
    name = str(weight.name) if isinstance(weight, relax.Var) else ""
    return kept.kind_of(name) or scheme.kind_of(formats.get(name, ""))


def kernel_passes(target: Target) -> list[Pass]:
    """The passes after the weights were lifted out: Relax's own lowering, fusion, and schedules for the rest."""
    return [
        relax.transform.FoldConstant(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),  # before schedules, under which a copy no longer looks like one
        relax.transform.DeadCodeElimination(),
        *target.schedules,
    ]


def run_passes(mod: IRModule, passes: Sequence[Pass], dumps: Dumps | None = None) -> IRModule:
    """Runs `passes` in order; from CUPOLA_DEBUG=2 on it says how long each took, from 3 on it writes the IR after each."""
    for step in passes:
        start = time.perf_counter()
        mod = step(mod)
        if debug_level() >= 2:
            print(f"cupola:   {step.info.name} {1e3 * (time.perf_counter() - start):.1f} ms", file=sys.stderr)
        if dumps is not None:
            dumps.write(step.info.name, mod.script(show_meta=False))
    return mod


class Dumps:
    """Numbered text files of what the compiler had in hand, for reading and for diffing; earlier ones there are replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9][0-9]_*.*"):
            if old.suffix in (".py", ".s", ".c"):
                old.unlink()
        print(f"cupola: dumps go to {folder}", file=sys.stderr, flush=True)

    def write(self, name: str, text: str, suffix: str = "py") -> None:
        """Writes `NN_name.suffix`."""
        (self.folder / f"{self.count:02d}_{name}.{suffix}").write_text(text, encoding="utf-8")
        self.count += 1


__all__ = ["Dumps", "import_passes", "kernel_passes", "pipeline", "run_passes"]
