"""A model's `config.json` alone as a source: what is compiled of it can be inspected, and has no weights to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cupola.compiler.sources.base import WEIGHT_DTYPES, Array, LazyTensor, Source
from cupola.compiler.sources.config_check import check_config
from cupola.compiler.sources.files import hash_of, read_json_object
from cupola.runtime.errors import SourceError

OUTLINE = "config"
_NOTE = "compiled from a configuration alone: it has no weights, and can be inspected, not run"


def open_outline(file: Path, name: str) -> Source:
    """The model that a configuration describes, whose tensors are the parameters that it is found to have.

    Raises:
        SourceError, UnsupportedError: as `check_config` says.
    """
    config = read_json_object(file)
    check_config(config, file)
    return Source(name, OUTLINE, hash_of([file]), config, {}, None, notes=(_NOTE,))


def outline_weights(source: Source, parameters: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    """A tensor for each parameter, of the type that the configuration names."""
    stored = str(source.config.get("dtype") or source.config.get("torch_dtype") or "")
    dtype = stored if stored in WEIGHT_DTYPES else "bfloat16"
    return {name: LazyTensor(name, tuple(shape), dtype, _nothing) for name, shape in parameters.items()}


def _nothing() -> Array:
    raise SourceError("has no weights", fix="give the folder that has them")
