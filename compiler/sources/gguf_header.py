"""The header of a GGUF file, read with every count, length and offset checked against the file before it is used.

The `gguf` library's own reader trusts the file: a forged count makes it loop or allocate without bound. So the header
is read here, after https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian), and
the library is used for what it knows best: block sizes and dequantization.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Never

import numpy as np

from cupola.compiler.sources.base import Array
from cupola.compiler.sources.files import mapped
from cupola.runtime.errors import SourceError, UnsupportedError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
RECONVERT = "convert the model to GGUF again"
USE_CHECKPOINT = "use the Hugging Face checkpoint of this model"
_MAX_FIELDS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_ELEMENTS = 1 << 22
_MAX_NAME = 1 << 10
_MAX_TEXT = 1 << 24
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file.

    Attributes:
        name: as in the file, such as `blk.0.attn_q.weight`.
        shape: slowest dimension first (the file has them the other way round).
        type_name: the ggml type, such as `Q4_1`.
        begin: position of the first byte in the file.
        num_bytes: its length.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    begin: int
    num_bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """A checked header: its metadata, its tensors, and the map of the whole file (bytes)."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    data: Array


class _Cursor:
    """Reads forward through a file's bytes and never past their end."""

    def __init__(self, path: Path, data: Array) -> None:
        self.path, self.data, self.position = path, data, 0

    def fail(self, field: str, message: str) -> Never:
        raise SourceError(message, file=self.path, field=field, fix="download it again")

    def take(self, count: int, field: str) -> bytes:
        if count > len(self.data) - self.position:
            self.fail(field, "the file ends in the middle of it")
        begin, self.position = self.position, self.position + count
        return self.data[begin : self.position].tobytes()

    def scalar(self, layout: str, field: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout), field))[0]

    def count(self, layout: str, field: str, highest: int) -> int:
        value = int(self.scalar(layout, field))
        if value > highest:
            self.fail(field, f"the count {value:,} is more than the {highest:,} that make sense")
        return value

    def name(self, field: str) -> str:
        """A key or a tensor's name; one that does not print would garble the messages that it appears in."""
        name = self.string(field, _MAX_NAME)
        if not name.isprintable():
            self.fail(field, f"{name!r:.80} is not printable")
        return name

    def string(self, field: str, max_bytes: int) -> str:
        raw = self.take(self.count("<Q", f"{field} (length)", max_bytes), field)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(field, "is not UTF-8 text")


def _array(cursor: _Cursor, field: str) -> list[Any]:
    kind = cursor.scalar("<I", f"{field} (element type)")
    count = cursor.count("<Q", f"{field} (length)", _MAX_ELEMENTS)
    if kind == _STRING:
        return [cursor.string(field, _MAX_TEXT) for _ in range(count)]
    if kind not in _SCALARS:
        cursor.fail(field, "is an array of arrays" if kind == _ARRAY else f"has elements of the unknown type {kind}")
    dtype = np.dtype(_SCALARS[kind])
    values: list[Any] = np.frombuffer(cursor.take(count * dtype.itemsize, field), dtype).tolist()
    return values


def _value(cursor: _Cursor, field: str) -> Any:
    kind = cursor.scalar("<I", f"{field} (type)")
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind], field)
    if kind == _STRING:
        return cursor.string(field, _MAX_TEXT)
    if kind == _ARRAY:
        return _array(cursor, field)
    cursor.fail(field, f"has the unknown type {kind}")


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        key = cursor.name(f"key of metadata field {index}")
        if key in metadata:
            cursor.fail(key, "appears twice")
        metadata[key] = _value(cursor, key)
    return metadata


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    valid = isinstance(alignment, int) and 1 <= alignment <= _MAX_ALIGNMENT and alignment & (alignment - 1) == 0
    if not valid:
        cursor.fail("general.alignment", f"is {alignment!r:.40}, not a power of two up to {_MAX_ALIGNMENT:,}")
    return int(alignment)


def _block(cursor: _Cursor, name: str, number: int) -> tuple[str, int, int]:
    """A ggml type's name, and how many values one of its blocks holds, in how many bytes."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        values, num_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UnsupportedError(
            f"has the unknown type {number}", file=cursor.path, field=name, fix="convert the file to a usual type, such as Q8_0"
        ) from None
    return kind.name, values, num_bytes


def _tensor_info(cursor: _Cursor, index: int) -> TensorInfo:
    """One entry of the tensor table; `begin` still counts from the start of the data."""
    name = cursor.name(f"name of tensor {index}")
    num_dims = cursor.count("<I", f"{name} (dimensions)", _MAX_DIMS)
    shape = tuple(cursor.scalar("<Q", f"{name} (dimensions)") for _ in range(num_dims))[::-1]
    type_name, values, block_bytes = _block(cursor, name, cursor.scalar("<I", f"{name} (type)"))
    begin = cursor.scalar("<Q", f"{name} (offset)")
    if not shape or min(shape) < 1:
        cursor.fail(name, f"has the empty shape {shape}")
    if shape[-1] % values:
        cursor.fail(name, f"rows of {shape[-1]} values do not fill blocks of {values}")
    return TensorInfo(name, shape, type_name, begin, prod(shape) // values * block_bytes)


def _place(cursor: _Cursor, tables: list[TensorInfo], alignment: int) -> tuple[TensorInfo, ...]:
    """The tensors with `begin` counted from the start of the file: inside it, aligned, none over another."""
    start = -(-cursor.position // alignment) * alignment
    placed = [TensorInfo(info.name, info.shape, info.type_name, start + info.begin, info.num_bytes) for info in tables]
    end = 0
    for info in sorted(placed, key=lambda each: each.begin):
        if (info.begin - start) % alignment:
            cursor.fail(f"{info.name} (offset)", f"is not a multiple of {alignment}")
        if info.begin + info.num_bytes > len(cursor.data):
            cursor.fail(info.name, "reaches past the end of the file, which is cut off or forged")
        if info.begin < end:
            cursor.fail(info.name, "lies over another tensor")
        end = info.begin + info.num_bytes
    return tuple(placed)


def read_header(path: Path) -> GGUFHeader:
    """Read and check a GGUF file's header; no tensor data is touched.

    Raises:
        SourceError: the file is not GGUF, damaged, cut off or forged; the message names the field.
        UnsupportedError: a version, byte order or tensor type that is not read here.
    """
    cursor = _Cursor(path, mapped(path))
    if cursor.take(4, "magic") != b"GGUF":
        cursor.fail("magic", "is not GGUF")
    version = cursor.scalar("<I", "version")
    if version not in (2, 3):
        order = version % (1 << 16) == 0
        raise UnsupportedError(
            "the file is big-endian" if order else f"is {version}",
            file=path,
            field="version",
            fix="give a little-endian GGUF file of version 2 or 3",
        )
    num_tensors = cursor.count("<Q", "tensor count", _MAX_TENSORS)
    metadata = _metadata(cursor, cursor.count("<Q", "metadata count", _MAX_FIELDS))
    alignment = _alignment(cursor, metadata)
    tables = [_tensor_info(cursor, index) for index in range(num_tensors)]
    if len({info.name for info in tables}) != len(tables):
        cursor.fail("tensor table", "a name appears twice")
    return GGUFHeader(path, metadata, _place(cursor, tables, alignment), cursor.data)
