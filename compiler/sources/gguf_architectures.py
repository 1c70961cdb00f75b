"""The architectures that are read from GGUF."""

from __future__ import annotations

from collections.abc import Mapping

from cupola.compiler.sources.gguf_architecture import Architecture
from cupola.compiler.sources.gguf_dense import DENSE
from cupola.compiler.sources.gguf_gemma4 import GEMMA4
from cupola.compiler.sources.gguf_mixtures import MIXTURES
from cupola.compiler.sources.gguf_recurrent import RECURRENT

ARCHITECTURES: Mapping[str, Architecture] = {**DENSE, **GEMMA4, **MIXTURES, **RECURRENT}
"""GGUF's name of an architecture -> how it is read."""


def architecture_table() -> tuple[tuple[str, str, str], ...]:
    """The rows of `docs/gguf.md`: architecture, transformers' model type and class, variants below one another."""
    every = [(name, each) for name, first in ARCHITECTURES.items() for each in (first, *(variant for _, variant in first.variants))]
    return tuple(sorted({(name, each.model_type, each.model_class) for name, each in every}))
