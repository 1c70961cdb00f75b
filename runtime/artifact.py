"""The artifact: a folder with everything a model needs to run, and the only contract between compiler and runtime.

    manifest.json         this module's `Manifest`, as JSON
    lib.so                the compiled module; lib.<isa>.so for further instruction sets
    weights-NNNNN.safetensors
    tokenizer.json, special_tokens_map.json   only if the model came with them
    chat_template.jinja                       the template for all chats; chat_template.NAME.jinja is one of another name, such as tool_use
    generation_config.json                    only if the model came with one

Dtypes are numpy's names plus `bfloat16`. A symbolic dimension is a string, such as `"n"`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import reprlib
import stat
import types
import typing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from cupola.runtime.errors import ArtifactError
from cupola.runtime.verified import verify_once

FORMAT_VERSION = 4
MANIFEST, LIBRARY, TOKENIZER, CHAT_TEMPLATE, GENERATION_CONFIG, SPECIAL_TOKENS = (
    "manifest.json", "lib.so", "tokenizer.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json")  # fmt: skip
MAX_MANIFEST_BYTES = 64 << 20
REPEAT_IN_TEAM = "repeat_in_team"  # of libraries: (times, function, *arguments), which calls it with threads that wait for its regions
MAXIMA_BLOCK = 64  # logits of a row; `forward` also gives the largest of each such block
MAX_STEPS = 8  # of the model in one step of the engine, each on the tokens that the one before chose; `forward` gives those of as many
COMPILE_AGAIN, COPY_AGAIN = "compile the model again", "copy or compile it again"
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
    """A compiled function: its inputs in call order (weights last), its outputs, and what its intermediate results take."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bytes_per_token: int = 0
    bytes_per_logit_row: int = 0


@dataclass(frozen=True)
class KVGroup:
    """Layers that share one block table and one page pool.

    Pages: keys `[layers, blocks, num_kv_heads, key_dim, block_size]` (transposed, so that scores vectorize over
    tokens), values `[layers, blocks, num_kv_heads, block_size, value_dim]`. `window` is the number of latest tokens
    that a query sees, itself included; 0 is all of them. Stored as int8, pages hold pairs: keys
    `[layers, blocks, num_kv_heads, key_dim / 2, block_size · 2]`, each token's dimensions 2i and 2i + 1 side by side, values
    `[layers, blocks, num_kv_heads, block_size / 2, value_dim · 2]`, each dimension's of tokens 2i and 2i + 1 side by side; and
    each token's key and value of a head have a scale, float32 `[layers, blocks, num_kv_heads, block_size]`, in pools of their own.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0


@dataclass(frozen=True)
class KVSpec:
    """The K/V cache that `forward` expects: the page pools of each group."""

    groups: tuple[KVGroup, ...]
    dtype: str
    block_size: int

    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block of `block_size` tokens takes over all groups and layers."""
        return sum(pool.num_bytes for pool in self.pools(1))

    def pools(self, num_blocks: int | str) -> list[TensorSpec]:
        """The pools of all groups; group 0 has `k_pages.0`, `v_pages.0` and, of int8, `k_scales.0` and `v_scales.0`."""
        pools, side = [], 2 if self.dtype == "int8" else 1
        for i, g in enumerate(self.groups):
            heads: tuple[int | str, ...] = (len(g.layers), num_blocks, g.num_kv_heads)
            pools.append(TensorSpec(f"k_pages.{i}", self.dtype, (*heads, g.key_dim // side, self.block_size * side)))
            pools.append(TensorSpec(f"v_pages.{i}", self.dtype, (*heads, self.block_size // side, g.value_dim * side)))
            if self.dtype == "int8":
                pools += [TensorSpec(f"{name}.{i}", "float32", (*heads, self.block_size)) for name in ("k_scales", "v_scales")]
        return pools


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
class LibrarySpec:
    """A compiled library, and what it runs on."""

    file: str
    target: TargetSpec


@dataclass(frozen=True)
class SourceSpec:
    """Where the weights came from: a path or name, its format and the hash of its content."""

    name: str
    format: str
    sha256: str


@dataclass(frozen=True)
class WeightSpec:
    """One weight: its place in a shard, in bytes from the start of the file.

    `storage` says, for people, how the weight that it is part of is stored: 4 bits, float32.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    storage: str = ""


@dataclass(frozen=True)
class FileSpec:
    """A file of the artifact, its size in bytes and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Work:
    """What a call of a kernel does, as far as the shapes of its arguments do not tell. A multiply-add is two operations.

    Attributes:
        arithmetic: what is multiplied, such as "float32" or "int8": which of the machine's peaks the kernel is held to.
        operations_per_row: rows are those of the result.
        operations_per_pair: of a query and a key that it sees.
        window: how many of the latest keys a query sees; 0 is all.
        gathered_bytes_per_row: how much of its largest argument is read a row; 0 means that all arguments are read whole.
    """

    arithmetic: str = "float32"
    operations_per_row: int = 0
    operations_per_pair: int = 0
    window: int = 0
    gathered_bytes_per_row: int = 0


@dataclass(frozen=True)
class KernelSpec:
    """A kernel of the library, for those who look inside and measure."""

    name: str
    work: Work = Work()


@dataclass(frozen=True)
class Manifest:
    """Everything about an artifact.

    Of the `libraries`, which share all else, the first that a machine can run is loaded. `probes` are kernels that no model
    calls: they find out what the machine can do. `notes` are for people: an unverified family, a fallback that was taken.
    """

    format_version: int
    cupola_version: str
    tvm_version: str
    source: SourceSpec
    libraries: tuple[LibrarySpec, ...]
    scheme: str
    model: ModelConfig
    kv: KVSpec
    limits: Limits
    functions: tuple[FunctionSpec, ...]
    weights: tuple[WeightSpec, ...]
    files: tuple[FileSpec, ...]
    kernels: tuple[KernelSpec, ...] = ()
    probes: tuple[KernelSpec, ...] = ()
    notes: tuple[str, ...] = ()

    def function(self, name: str) -> FunctionSpec:
        """The function called `name`; KeyError if there is none."""
        return {function.name: function for function in self.functions}[name]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str, file: Path) -> Manifest:
        """Reads what `to_json` wrote, and checks that it makes sense. Raises ArtifactError naming `file` and the field."""
        from cupola.runtime.artifact_check import check_manifest  # here: it imports this module

        try:
            data = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"is not JSON: {error}", file=file, fix=COMPILE_AGAIN) from None
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            fix = "upgrade cupola" if isinstance(version, int) and version > FORMAT_VERSION else COMPILE_AGAIN
            found = f"is {reprlib.repr(version)}, this cupola reads {FORMAT_VERSION}"
            raise ArtifactError(found, file=file, field="format_version", fix=fix)
        manifest: Manifest = _parse(Manifest, data, file, "")
        check_manifest(manifest, file)
        return manifest


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk. `open` checks everything that can be checked without running the library."""

    path: Path
    manifest: Manifest

    @property
    def sha256(self) -> str:
        """Of the manifest, which hashes every file: what tells this artifact from any other one."""
        return hashlib.sha256(self.manifest.to_json().encode("utf-8", "surrogatepass")).hexdigest()

    @staticmethod
    def open(path: str | Path, *, verify: bool = True) -> Artifact:
        """Reads the manifest of the artifact at `path` and checks its files' sizes and (with `verify`) hashes.

        Hashes are computed once, and again when a file changes: `runtime/verified.py`.

        Raises:
            ArtifactError: naming the file, the field and the fix.
        """
        path = Path(path)
        artifact = Artifact(path, Manifest.from_json(_read_manifest(path / MANIFEST), path / MANIFEST))
        for entry in artifact.manifest.files:
            _check_file(path / entry.name, entry)
        if verify:
            verify_once(path, {path / entry.name: entry.sha256 for entry in artifact.manifest.files}, artifact._check_hashes)
        return artifact

    def lists(self, name: str) -> bool:
        """Whether the manifest lists the file; one that only lies in the folder is not the artifact's."""
        return any(entry.name == name for entry in self.manifest.files)

    def _check_hashes(self) -> None:
        with ThreadPoolExecutor(4) as pool:  # hashlib lets go of the interpreter lock
            list(pool.map(self._check_hash, self.manifest.files))

    def _check_hash(self, entry: FileSpec) -> None:
        file = self.path / entry.name
        try:
            found = sha256_of(file)
        except OSError as error:
            raise ArtifactError(f"can't be read: {error.strerror}", file=file, fix=COPY_AGAIN) from None
        if found != entry.sha256:
            raise ArtifactError("does not match its SHA-256 in the manifest", file=file, fix=f"it was changed or damaged; {COPY_AGAIN}")


def template_file(name: str) -> str:
    """The file of the chat template of that name; "default" is the one for all chats."""
    return CHAT_TEMPLATE if name == "default" else CHAT_TEMPLATE.replace(".", f".{name}.")


def template_name(file: str) -> str | None:
    """The name of the chat template in the file; None if it holds none."""
    stem, suffix = CHAT_TEMPLATE.split(".")
    begins = file.startswith(f"{stem}.") and file.endswith(f".{suffix}")
    return "default" if file == CHAT_TEMPLATE else file[len(stem) + 1 : -len(suffix) - 1] or None if begins else None


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_manifest(file: Path) -> str:
    """The manifest's text. Only a regular file is opened: a pipe would never end."""
    fix = "is this an artifact's folder? `cupola compile` makes one"
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError("is not a manifest", file=file, fix=fix)
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        raise ArtifactError(f"can't be read: {reason}", file=file, fix=fix) from None


def _check_file(file: Path, entry: FileSpec) -> None:
    """Refuses a file that is missing, of another size, or not really in the folder."""
    try:
        status = file.stat()  # first: it finds rings of links
        if file.is_symlink() and file.resolve().parent != file.parent.resolve():
            raise ArtifactError("is a link to outside of the artifact", file=file, fix="put the file itself there")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise ArtifactError("is missing" if missing else f"can't be read: {error.strerror}", file=file, fix=COPY_AGAIN) from None
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError("is not a regular file", file=file, fix=COPY_AGAIN)
    if status.st_size != entry.num_bytes:
        found = f"has {status.st_size} bytes, not {reprlib.repr(entry.num_bytes)}"
        raise ArtifactError(found, file=file, fix=f"it was not copied whole; {COPY_AGAIN}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _parse(kind: Any, value: Any, file: Path, field: str) -> Any:
    """Builds `kind` (a dataclass, tuple, union or plain type) from JSON, strictly."""
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, file, field)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(arguments[0], item, file, f"{field}[{i}]") for i, item in enumerate(value))
    options = arguments if origin in (typing.Union, types.UnionType) else (kind,)
    if not any(type(value) is option for option in options):
        raise ArtifactError(f"{reprlib.repr(value)} is not what belongs here", file=file, field=field, fix=COMPILE_AGAIN)
    if isinstance(value, str) and not value.isprintable():  # it may be shown in a terminal
        raise ArtifactError(f"{reprlib.repr(value)} holds characters that do not print", file=file, field=field, fix=COMPILE_AGAIN)
    return value


def _parse_dataclass(kind: Any, value: Any, file: Path, field: str) -> Any:
    names = [f.name for f in fields(kind)]
    if not isinstance(value, dict) or set(value) != set(names):
        raise ArtifactError(f"expected the fields {', '.join(names)}", file=file, field=field or None, fix=COMPILE_AGAIN)
    hints = _hints(kind)
    return kind(**{name: _parse(hints[name], value[name], file, f"{field}.{name}".lstrip(".")) for name in names})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
