"""A name for what compiles: the same name, and the same source and options, give the same artifact."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path

from cupola.targets.registry import list_targets

_COMPILED_BY = ("compiler", "passes", "targets", "models", "runtime.artifact")
_SOURCES = (".py", ".c", ".h", ".symbols")


@cache
def build_id() -> str:
    """A hash of all that decides what a compile makes of its input: cupola's own source, TVM, what this machine can run."""
    runs_here = [target.name for target in list_targets() if target.runs_here()]
    digest = hashlib.sha256(f"{importlib.metadata.version('apache-tvm')} {runs_here}".encode())
    for room in _COMPILED_BY:
        spec = importlib.util.find_spec(f"cupola.{room}")
        assert spec is not None and spec.origin is not None
        origin = Path(spec.origin)
        for file in sorted(origin.parent.rglob("*.*")) if spec.submodule_search_locations else [origin]:
            if file.suffix in _SOURCES and "cli" not in file.parts:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
