"""Shards of weights that an interrupted compile had finished, for the next one to keep.

A line is added to RECORD in the folder that becomes the artifact whenever a shard is whole: {"name", "key", "num_bytes", "sha256"}. The key
is a hash of all that decides the shard's bytes. A shard is kept if its line has the key that it would get now, and its file that size and
hash; whatever else is there is packed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cupola.compiler.build_id import build_id
from cupola.compiler.options import CompileOptions
from cupola.runtime.artifact.folder import sha256_of
from cupola.runtime.artifact.manifest import FileSpec

RECORD = ".finished"
SHARD_NAME = re.compile(r"weights-[0-9]{5,}\.safetensors")
_VERSIONS = ("numpy", "torch", "transformers")


@dataclass(frozen=True)
class Finished:
    """The finished shards of a folder.

    Attributes:
        folder: where they lie.
        origin: what weights are made from and by, as text; "" where that can't be told: then nothing is kept.
    """

    folder: Path
    origin: str = ""

    def find(self, name: str, header: bytes) -> FileSpec | None:
        """The whole shard of that name and header, if it is there. What is not believed is removed."""
        file = self.folder / name
        wanted = {"name": name, "key": self._key(header)}
        for entry in reversed(self._entries()) if self.origin and file.is_file() else ():
            if {key: entry.get(key) for key in wanted} == wanted:
                spec = FileSpec(name, file.stat().st_size, sha256_of(file))
                if entry == wanted | {"num_bytes": spec.num_bytes, "sha256": spec.sha256}:
                    return spec
        file.unlink(missing_ok=True)
        return None

    def add(self, spec: FileSpec, header: bytes) -> None:
        """Records a shard that is whole."""
        if self.origin:
            entry = {"name": spec.name, "key": self._key(header), "num_bytes": spec.num_bytes, "sha256": spec.sha256}
            with (self.folder / RECORD).open("a", encoding="utf-8") as record:
                record.write(f"\n{json.dumps(entry)}")  # in front of it, so that half a line spoils no other

    def _key(self, header: bytes) -> str:
        return hashlib.sha256(self.origin.encode() + b"\0" + header).hexdigest()

    def _entries(self) -> list[dict[str, Any]]:
        record, entries = self.folder / RECORD, []
        for line in record.read_bytes().splitlines() if record.is_file() else ():
            with contextlib.suppress(ValueError):  # the compile ended, or the disk failed, in the middle of it
                entry = json.loads(line)
                entries += [entry] if isinstance(entry, dict) else []
        return entries


def origin_of(source_sha256: str, options: CompileOptions) -> str:
    """Everything that decides the bytes of packed weights: the source's content, the options, cupola, and the packages it computes with."""
    versions = {package: importlib.metadata.version(package) for package in _VERSIONS}
    return json.dumps([source_sha256, asdict(options), build_id(), versions])
