"""Weights in a safetensors file, memory-mapped.

The format (an 8-byte header length, a JSON header, the data) is the one of https://github.com/huggingface/safetensors,
whose own library checks the file: header size, bounds, overlaps, holes, shapes. It cannot hand bfloat16 to numpy,
so the values are read through a map of the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from cupola.compiler.sources.base import Array, LazyTensor
from cupola.compiler.sources.files import mapped, one_line, typed
from cupola.runtime.errors import SourceError, UnsupportedError

_DOUBLE = "F64"  # rounded to float32, as transformers does when it is asked for that
CODES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E8M0": np.dtype(np.uint8),
}
"""Types that no parameter has, but parts of quantized weights: floats of 8 bits are read as their bits."""
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name appears twice in the header")
    if not all(name.isprintable() for name, _ in pairs):
        raise ValueError("a name in the header is not printable")
    return dict(pairs)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The checked header and the position at which the data begin."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(length), object_pairs_hook=_unique), 8 + length
    except (SafetensorError, ValueError, RecursionError) as error:
        raise SourceError(f"is damaged: {one_line(error)}", file=path, fix="download it again") from None
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror or error}", file=path, fix="check the file and its permissions") from None


def _lazy(path: Path, data: Array, name: str, stored_as: str, shape: tuple[int, ...]) -> LazyTensor:
    if stored_as == _DOUBLE:
        return LazyTensor(name, shape, "float32", lambda: _to_single(typed(data, np.dtype(np.float64), shape)), stored_as)
    if stored_as in CODES:
        return LazyTensor(name, shape, stored_as.lower(), lambda: typed(data, CODES[stored_as], shape), stored_as)
    if stored_as not in DTYPES:

        def refuse() -> Array:
            raise UnsupportedError(f"has the type {stored_as}", file=path, field=name, fix="give the model in f32, f16 or bf16")

        return LazyTensor(name, shape, stored_as.lower(), refuse, stored_as)
    dtype = DTYPES[stored_as]
    return LazyTensor(name, shape, dtype.name, lambda: typed(data, dtype, shape), stored_as)


def _to_single(values: Array) -> Array:
    with np.errstate(over="ignore"):  # what becomes infinite is told when the weight is packed
        single: Array = values.astype(np.float32)
    return single


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that the header holds besides, by their names. Raises SourceError."""
    metadata = _header(path)[0].get("__metadata__")
    return dict(metadata) if isinstance(metadata, dict) else {}


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors in a safetensors file; their values are read when asked for, and refused then if they are of none of these types.

    Raises:
        SourceError: the file is damaged.
    """
    header, start = _header(path)
    header.pop("__metadata__", None)
    data = mapped(path)
    tensors = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        tensors[name] = _lazy(path, data[begin:end], name, entry["dtype"], tuple(entry["shape"]))
    return tensors
