"""Arrays of numpy that hold what kernels take: by the manifest's dtypes, and aligned for whole vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from cupola.runtime.artifact.plan import ALIGNMENT
from cupola.runtime.artifact.tensors import E4M3

Array = npt.NDArray[Any]
_STAND_INS = {"bfloat16": "uint16", E4M3: "uint8"}  # numpy has neither


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The dtype of arrays that hold elements of a manifest's `dtype`: one of the same size where numpy has not that one."""
    return np.dtype(_STAND_INS.get(dtype, dtype))


def aligned_empty(dtype: str, shape: tuple[int, ...]) -> Array:
    """An array with any content, its memory aligned."""
    return _aligned(np.empty(num_bytes(dtype, shape) + ALIGNMENT, np.uint8), dtype, shape)


def aligned_zeros(dtype: str, shape: tuple[int, ...]) -> Array:
    """An array of zeros, its memory aligned, and taken from the system only as it is written."""
    return _aligned(np.zeros(num_bytes(dtype, shape) + ALIGNMENT, np.uint8), dtype, shape)


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * numpy_dtype(dtype).itemsize


def _aligned(memory: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> Array:
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + num_bytes(dtype, shape)].view(numpy_dtype(dtype)).reshape(shape)
