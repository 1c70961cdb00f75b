"""Weights, where the artifact's files have them."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np

from cupola.runtime.artifact.arrays import Array, aligned_empty, numpy_dtype
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.plan import ALIGNMENT
from cupola.runtime.artifact.tensors import WeightSpec


def map_weights(artifact: Artifact) -> dict[str, Array]:
    """The weights by name: views of the mapped files, which can't be written to, or aligned copies of what is not aligned there."""
    files = {weight.file for weight in artifact.manifest.weights}
    maps = {name: _map(artifact.path / name) for name in files}
    return {weight.name: _weight(maps[weight.file], weight) for weight in artifact.manifest.weights}


def _map(file: Path) -> Array:
    """A file's bytes where the system's cache has them, which reads them by large pages if it can."""
    with file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # the system's kernel was built without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def _weight(file: Array, spec: WeightSpec) -> Array:
    dtype = numpy_dtype(spec.dtype)
    data = file[spec.offset : spec.offset + math.prod(spec.shape) * dtype.itemsize]
    if data.ctypes.data % ALIGNMENT:
        copy = aligned_empty("uint8", data.shape)
        copy[...] = data
        data = copy
    return data.view(dtype).reshape(spec.shape)
