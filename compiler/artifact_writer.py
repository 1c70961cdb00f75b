"""Writes what an artifact's folder holds."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cupola.compiler.finished import RECORD, SHARD_NAME, Finished
from cupola.compiler.sources import Source
from cupola.compiler.weights import PackedWeight
from cupola.runtime.artifact.folder import sha256_of, template_file
from cupola.runtime.artifact.manifest import GENERATION_CONFIG, LICENSE, MANIFEST, NOT_HASHED, SPECIAL_TOKENS, TOKENIZER, FileSpec, Manifest
from cupola.runtime.artifact.read import parse_manifest
from cupola.runtime.artifact.tensors import TensorSpec, WeightSpec
from cupola.runtime.environment import num_threads

SHARD_BYTES = 256 << 20  # shards are hashed side by side when the artifact is opened
PIECE_BYTES = 2 << 20  # a large page: what is written at once stays in memory in one, and need not be found by 512 small ones
_STRIPS_AHEAD = 16  # of a megabyte or so each: threads don't wait while one is written
ALIGNMENT = 64  # kernels read weights in place, from the mapped file
_SAFETENSORS = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "uint32": "U32", "int8": "I8", "uint8": "U8",
}  # fmt: skip


def write_texts(folder: Path, source: Source) -> None:
    """The tokenizer, chat templates, generation defaults and licence, as far as the model came with them."""
    texts = {
        TOKENIZER: source.tokenizer_json,
        SPECIAL_TOKENS: json.dumps(dict(source.special_tokens), indent=1) if source.tokenizer_json is not None else None,
        **{template_file(name): text for name, text in source.chat_templates.items()},
        GENERATION_CONFIG: json.dumps(dict(source.generation_config), indent=1) if source.generation_config else None,
        LICENSE: source.license or None,
    }
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last file of an artifact; its presence makes the folder one. Raises ArtifactError for what could not be opened again."""
    text = manifest.to_json()
    parse_manifest(text, folder / MANIFEST)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def printable(text: str) -> str:
    """`text` with what does not print escaped, as a manifest wants it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def list_files(folder: Path, hashed: Sequence[FileSpec]) -> tuple[FileSpec, ...]:
    """Every file of the folder with its size and hash; `hashed` are the ones known already. Folders (IR dumps) do not count."""
    known = {file.name for file in hashed}
    others = sorted(file for file in folder.iterdir() if file.is_file() and file.name not in known and file.name != RECORD)
    return (*(FileSpec(file.name, file.stat().st_size, sha256_of(file)) for file in others), *hashed)


def write_weights(
    folder: Path, weights: Sequence[PackedWeight], advance: Callable[[int], None], origin: str = ""
) -> tuple[tuple[WeightSpec, ...], tuple[FileSpec, ...]]:
    """Writes safetensors shards, some strips or one weight in memory at a time; returns where each weight is, and the files.

    Every weight starts at a multiple of 64 bytes, or of the largest power of two in its size: the format allows no gaps.
    Shards that were finished before from the same `origin` (`finished.py`) are kept; there must be no others in the folder when it is done.
    """
    places, files, finished = [], [], Finished(folder, origin)
    for name, layout, shard in _named_shards(weights):
        spec = finished.find(name, layout.header)
        if spec is None:
            spec = _write_shard(folder / name, layout, shard, advance)
            if not any(weight.overflows for weight in shard):  # of which there are notes, by those who compute it
                finished.add(spec, layout.header)
        else:
            advance(sum(weight.spec.num_bytes for weight in shard))
        files.append(spec)
        places += _places(name, layout, shard)
    for file in folder.iterdir():
        if SHARD_NAME.fullmatch(file.name) and file.name not in {spec.name for spec in files}:
            file.unlink()
    return _in_order(places, weights), tuple(files)


def outline_weights(folder: Path, weights: Sequence[PackedWeight]) -> tuple[tuple[WeightSpec, ...], tuple[FileSpec, ...]]:
    """As `write_weights`, without the weights: files of the same size that take no room on the disk, and are not hashed."""
    places, files = [], []
    for name, layout, shard in _named_shards(weights):
        with (folder / name).open("wb") as stream:
            stream.write(layout.header)
            stream.truncate(layout.num_bytes)
        files.append(FileSpec(name, layout.num_bytes, NOT_HASHED))
        places += _places(name, layout, shard)
    return _in_order(places, weights), tuple(files)


def _named_shards(weights: Sequence[PackedWeight]) -> Iterator[tuple[str, _Layout, list[PackedWeight]]]:
    for number, shard in enumerate(_shards(weights), 1):
        yield f"weights-{number:05d}.safetensors", _Layout.of([weight.spec for weight in shard]), shard


def _places(name: str, layout: _Layout, shard: Sequence[PackedWeight]) -> list[WeightSpec]:
    specs = zip(shard, layout.offsets, strict=True)
    return [WeightSpec(w.spec.name, w.spec.dtype, tuple(map(int, w.spec.shape)), name, offset, w.storage) for w, offset in specs]


def _in_order(places: Sequence[WeightSpec], weights: Sequence[PackedWeight]) -> tuple[WeightSpec, ...]:
    """The places in the order of the weights."""
    by_name = {place.name: place for place in places}
    return tuple(by_name[weight.spec.name] for weight in weights)


def _shards(weights: Sequence[PackedWeight]) -> Iterator[list[PackedWeight]]:
    """Weights of at most SHARD_BYTES together (or one larger), ordered so that each keeps the next one aligned.

    What comes before a weight then sums to a multiple of its own size's power of two, and so of its item size.
    """
    shard: list[PackedWeight] = []
    num_bytes = 0
    for weight in sorted(weights, key=lambda w: -_alignment(w.spec.num_bytes)):
        if shard and num_bytes + weight.spec.num_bytes > SHARD_BYTES:
            yield shard
            shard, num_bytes = [], 0
        shard.append(weight)
        num_bytes += weight.spec.num_bytes
    if shard:
        yield shard


def _alignment(num_bytes: int) -> int:
    """The largest power of two that divides a size, up to ALIGNMENT."""
    return math.gcd(num_bytes, ALIGNMENT)


@dataclass(frozen=True)
class _Layout:
    """The header of a shard, where in the file each tensor starts, and the file's size."""

    header: bytes
    offsets: tuple[int, ...]
    num_bytes: int

    @staticmethod
    def of(specs: Sequence[TensorSpec]) -> _Layout:
        """https://github.com/huggingface/safetensors#format: length, JSON padded with spaces, then the data."""
        entries, start = {}, 0
        starts = []
        for spec in specs:
            end = start + spec.num_bytes
            entries[spec.name] = {"dtype": _SAFETENSORS[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
            starts.append(start)
            start = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % ALIGNMENT)
        header = len(text).to_bytes(8, "little") + text
        return _Layout(header, tuple(len(header) + start for start in starts), len(header) + start)


class Pieces:
    """Writes to `stream` by PIECE_BYTES."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._pending, self._size = stream, memoryview(bytearray(PIECE_BYTES)), 0

    def write(self, data: bytes | memoryview) -> None:
        """Takes bytes, of which the last ones may stay here."""
        rest = memoryview(data)
        while len(rest):
            if not self._size and len(rest) >= PIECE_BYTES:
                self._stream.write(rest[:PIECE_BYTES])
                rest = rest[PIECE_BYTES:]
                continue
            some, rest = rest[: PIECE_BYTES - self._size], rest[PIECE_BYTES - self._size :]
            self._pending[self._size : self._size + len(some)] = some
            self._size += len(some)
            if self._size == PIECE_BYTES:
                self.flush()

    def flush(self) -> None:
        """Writes what is here."""
        self._stream.write(self._pending[: self._size])
        self._size = 0


def _write_shard(file: Path, layout: _Layout, weights: Sequence[PackedWeight], advance: Callable[[int], None]) -> FileSpec:
    digest, num_bytes = hashlib.sha256(layout.header), len(layout.header)
    with file.open("wb") as stream, ThreadPoolExecutor(1) as hasher:
        pieces, hashed = Pieces(stream), deque[Future[None]]()
        pieces.write(layout.header)
        for data in _computed(weights):
            hashed.append(hasher.submit(digest.update, data))
            pieces.write(data)
            num_bytes += data.nbytes
            advance(data.nbytes)
            if len(hashed) > _STRIPS_AHEAD:
                hashed.popleft().result()
        pieces.flush()
    assert num_bytes == layout.num_bytes, f"{file.name} has {num_bytes} bytes, and not {layout.num_bytes}"
    return FileSpec(file.name, num_bytes, digest.hexdigest())


def _computed(weights: Sequence[PackedWeight]) -> Iterator[memoryview]:
    """The bytes of weights in order. Strips are computed in threads, a few ahead; whole weights by the caller's, one at a time."""
    with ThreadPoolExecutor(num_threads()) as pool:
        ahead: deque[Callable[[], npt.NDArray[Any]]] = deque()
        for weight in weights:
            found = [weight.compute] if weight.strips is None else weight.strips()
            for strip in found:
                ahead.append(pool.submit(strip).result if len(found) > 1 else strip)
                if len(ahead) > _STRIPS_AHEAD:
                    yield _bytes_of(ahead.popleft()())
        while ahead:
            yield _bytes_of(ahead.popleft()())


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
