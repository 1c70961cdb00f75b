"""The tensors of a GGUF file as they are there: floats, or dequantized exactly as the format defines, and their blocks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.composition import stacked
from cupola.compiler.sources.files import typed
from cupola.compiler.sources.gguf_blocks import BLOCKS
from cupola.compiler.sources.gguf_header import GGUFHeader, TensorInfo
from cupola.runtime.errors import UnsupportedError
from cupola.targets.formats.ggml import GGML_FORMATS

_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}

_MOST_MATRICES = 1 << 16


def read_values(header: GGUFHeader, info: TensorInfo) -> Array:
    """A tensor as the file has it: a view in its own float type, or dequantized to float32."""
    raw = header.data[info.begin : info.begin + info.num_bytes]
    if dtype := _FLOATS.get(info.type_name):
        return typed(raw, dtype, info.shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    if info.type_name == "Q1_0":  # which the library does not know
        return BLOCKS[info.type_name](raw, math.prod(info.shape[:-1])).values().reshape(info.shape)
    # A damaged scale may be NaN; what that does to a weight is not for numpy to warn about here.
    with np.errstate(invalid="ignore", over="ignore"):
        values: Array = dequantize(raw.reshape(*info.shape[:-1], -1), GGMLQuantizationType[info.type_name])
    return values


def lazy_tensor(header: GGUFHeader, info: TensorInfo, name: str) -> LazyTensor:
    """A tensor that is called `name`, read when it is asked for; one with three axes matrix by matrix.

    Raises:
        UnsupportedError: its type cannot be dequantized.
    """
    from gguf import quants

    # gguf.quants has one class for each type that it can dequantize, named as the type is.
    if info.type_name not in _FLOATS and info.type_name not in BLOCKS and not hasattr(quants, info.type_name):
        problem = f"has the type {info.type_name}, which cannot be dequantized"
        raise UnsupportedError(problem, file=header.path, field=info.name, fix="use a file of another quantization")
    if len(info.shape) == 3 and info.shape[0] <= _MOST_MATRICES:
        return stacked([_matrix(header, part, name) for part in _matrices(info)])
    return _matrix(header, info, name)


def _matrices(info: TensorInfo) -> list[TensorInfo]:
    """The places of the matrices of a tensor with three axes lie."""
    size = info.num_bytes // info.shape[0]
    begins = range(info.begin, info.begin + info.num_bytes, size)
    return [TensorInfo(info.name, info.shape[1:], info.type_name, begin, size) for begin in begins]


def _matrix(header: GGUFHeader, info: TensorInfo, name: str) -> LazyTensor:
    dtype = _FLOATS[info.type_name].name if info.type_name in _FLOATS else "float32"

    def load() -> Array:
        return read_values(header, info)

    if info.type_name not in BLOCKS or len(info.shape) != 2:
        return LazyTensor(name, info.shape, dtype, load, info.type_name)
    raw = header.data[info.begin : info.begin + info.num_bytes]
    read, in_rows = BLOCKS[info.type_name], raw.reshape(info.shape[0], -1)
    tensor = LazyTensor(name, info.shape, dtype, load, info.type_name, GGML_FORMATS[info.type_name], lambda: read(raw, info.shape[0]))
    return replace(tensor, block_rows=lambda rows: read(np.take(in_rows, rows, axis=0), len(rows)))
