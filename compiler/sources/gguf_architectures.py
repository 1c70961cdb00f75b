"""The architectures that are read from GGUF."""

from __future__ import annotations

from collections.abc import Mapping

from cupola.compiler.sources.gguf_architecture import Architecture
from cupola.compiler.sources.gguf_dense import DENSE
from cupola.compiler.sources.gguf_mixtures import MIXTURES

ARCHITECTURES: Mapping[str, Architecture] = {**DENSE, **MIXTURES}
"""GGUF's name of an architecture -> how it is read."""
