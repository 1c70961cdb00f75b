"""The artifact: a folder with everything a model needs to run, and the only contract between compiler and runtime.

    manifest.json         this module's `Manifest`, as JSON
    lib.so                the compiled module
    weights-NNNNN.safetensors
    tokenizer.json, chat_template.jinja       only if the model came with them
    generation_config.json                    only if the model came with one

Dtypes are numpy's names plus `bfloat16`. A symbolic dimension is a string, such as `"n"`.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from cupola.runtime.errors import ArtifactError

FORMAT_VERSION = 1
MANIFEST, LIBRARY, TOKENIZER, CHAT_TEMPLATE, GENERATION_CONFIG = (
    "manifest.json", "lib.so", "tokenizer.json", "chat_template.jinja", "generation_config.json")  # fmt: skip
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a compiled function; a string in `shape` is a symbolic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of a tensor whose dimensions are all known."""
        return math.prod(int(size) for size in self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class FunctionSpec:
    """A compiled function: its inputs in call order (weights last) and its outputs."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class KVGroup:
    """Layers that share one block table and one page pool.

    Pages: keys `[layers, blocks, num_kv_heads, key_dim, block_size]` (transposed, so that scores vectorize over
    tokens), values `[layers, blocks, num_kv_heads, block_size, value_dim]`. `window` is the number of latest tokens
    that a query sees, itself included; 0 is all of them.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0


@dataclass(frozen=True)
class KVSpec:
    """The K/V cache that `forward` expects: one pool of keys and one of values a group."""

    groups: tuple[KVGroup, ...]
    dtype: str
    block_size: int

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block of `block_size` tokens takes over all groups and layers."""
        per_token = sum(len(g.layers) * g.num_kv_heads * (g.key_dim + g.value_dim) for g in self.groups)
        return per_token * self.block_size * ITEM_BYTES[self.dtype]

    def page_shapes(self, num_blocks: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The shapes of the key pool and the value pool of each group."""
        return [
            (
                (len(g.layers), num_blocks, g.num_kv_heads, g.key_dim, self.block_size),
                (len(g.layers), num_blocks, g.num_kv_heads, self.block_size, g.value_dim),
            )
            for g in self.groups
        ]


@dataclass(frozen=True)
class ModelConfig:
    """What the runtime must know of the model."""

    family: str
    context_length: int
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    bos_token_id: int | None = None


@dataclass(frozen=True)
class Limits:
    """What one call of `forward` may be asked for."""

    max_batch_size: int


@dataclass(frozen=True)
class TargetSpec:
    """What the library was compiled for; `features` must all be there on the machine that loads it."""

    name: str
    triple: str
    isa: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class SourceSpec:
    """Where the weights came from: a path or name, its format and the hash of its content."""

    name: str
    format: str
    sha256: str


@dataclass(frozen=True)
class WeightSpec:
    """One weight: its place in a shard, in bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int


@dataclass(frozen=True)
class FileSpec:
    """A file of the artifact, its size in bytes and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything about an artifact. `notes` are for people: an unverified family, a fallback that was taken."""

    format_version: int
    cupola_version: str
    tvm_version: str
    source: SourceSpec
    target: TargetSpec
    scheme: str
    model: ModelConfig
    kv: KVSpec
    limits: Limits
    functions: tuple[FunctionSpec, ...]
    weights: tuple[WeightSpec, ...]
    files: tuple[FileSpec, ...]
    kernels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def function(self, name: str) -> FunctionSpec:
        """The function called `name`; KeyError if there is none."""
        return {function.name: function for function in self.functions}[name]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str, file: Path) -> Manifest:
        """Reads what `to_json` wrote. Raises ArtifactError naming `file` and the field."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"is not JSON: {error}", file=file, fix="compile the model again") from None
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            fix = "upgrade cupola" if isinstance(version, int) and version > FORMAT_VERSION else "compile the model again"
            raise ArtifactError(f"is {version!r}, this cupola reads {FORMAT_VERSION}", file=file, field="format_version", fix=fix)
        manifest = _parse(Manifest, data, file, "")
        assert isinstance(manifest, Manifest)
        return manifest


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk. `open` checks everything that can be checked without running the library."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | Path, *, verify: bool = True) -> Artifact:
        """Reads the manifest of the artifact at `path` and checks its files' sizes and (with `verify`) hashes.

        Raises:
            ArtifactError: naming the file, the field and the fix.
        """
        path = Path(path)
        try:
            text = (path / MANIFEST).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
            raise ArtifactError(f"can't be read: {reason}", file=path / MANIFEST, fix="is this an artifact's folder? `cupola compile` makes one") from None
        artifact = Artifact(path, Manifest.from_json(text, path / MANIFEST))
        artifact._check_files(verify)
        return artifact

    def _check_files(self, verify: bool) -> None:
        for entry in self.manifest.files:
            if Path(entry.name).name != entry.name:
                raise ArtifactError(f"{entry.name!r} is not a plain file name", file=self.path / MANIFEST, field="files", fix="compile the model again")
            file = self.path / entry.name
            size = file.stat().st_size if file.is_file() else None
            if size != entry.num_bytes:
                found = "is missing" if size is None else f"has {size} bytes, not {entry.num_bytes}"
                raise ArtifactError(found, file=file, fix="it was not copied whole; copy or compile it again")
        self._check_weights()
        if verify:
            with ThreadPoolExecutor(4) as pool:  # hashlib lets go of the interpreter lock
                list(pool.map(self._check_hash, self.manifest.files))

    def _check_weights(self) -> None:
        sizes = {entry.name: entry.num_bytes for entry in self.manifest.files}
        if LIBRARY not in sizes:
            raise ArtifactError(f"does not list {LIBRARY}", file=self.path / MANIFEST, field="files", fix="compile the model again")
        for weight in self.manifest.weights:
            known = weight.dtype in ITEM_BYTES and all(size >= 0 for size in weight.shape)
            num_bytes = math.prod(weight.shape) * ITEM_BYTES[weight.dtype] if known else -1
            if num_bytes < 0 or weight.offset < 0 or weight.offset + num_bytes > sizes.get(weight.file, -1):
                raise ArtifactError("lies outside its file", file=self.path / MANIFEST, field=f"weights.{weight.name}", fix="compile the model again")

    def _check_hash(self, entry: FileSpec) -> None:
        file = self.path / entry.name
        if sha256_of(file) != entry.sha256:
            raise ArtifactError("does not match its SHA-256 in the manifest", file=file, fix="it was changed or damaged; copy or compile it again")


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse(kind: Any, value: Any, file: Path, field: str) -> Any:
    """Builds `kind` (a dataclass, tuple, union or plain type) from JSON, strictly."""
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, file, field)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(arguments[0], item, file, f"{field}[{i}]") for i, item in enumerate(value))
    if origin in (typing.Union, types.UnionType) and any(type(value) is option for option in arguments):
        return value
    if type(value) is kind:
        return value
    raise ArtifactError(f"{value!r:.60} is not what belongs here", file=file, field=field, fix="compile the model again")


def _parse_dataclass(kind: Any, value: Any, file: Path, field: str) -> Any:
    names = [f.name for f in fields(kind)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise ArtifactError(f"expected the fields {', '.join(names)}", file=file, field=field or None, fix="compile the model again")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _parse(hints[name], value[name], file, f"{field}.{name}".lstrip(".")) for name in names})
