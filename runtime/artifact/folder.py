"""An artifact's folder: opened and checked, its files named and hashed."""

from __future__ import annotations

import hashlib
import reprlib
import stat
from dataclasses import dataclass
from pathlib import Path

from cupola.runtime.artifact.manifest import CHAT_TEMPLATE, COPY_AGAIN, MANIFEST, NOT_HASHED, FileSpec, Manifest
from cupola.runtime.artifact.read import parse_manifest, read_manifest
from cupola.runtime.artifact.verified import verify_once
from cupola.runtime.errors import ArtifactError


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

        Hashes are computed once, and again when a file changes: `runtime/artifact/verified.py`.

        Raises:
            ArtifactError: naming the file, the field and the fix.
        """
        path = Path(path)
        artifact = Artifact(path, parse_manifest(read_manifest(path / MANIFEST), path / MANIFEST))
        for entry in artifact.manifest.files:
            _check_file(path / entry.name, entry)
        if verify:
            verify_once(path, {path / entry.name: entry.sha256 for entry in artifact.manifest.files}, artifact._check_hashes)
        return artifact

    def lists(self, name: str) -> bool:
        """True if the manifest lists the file; one that only lies in the folder is not the artifact's."""
        return any(entry.name == name for entry in self.manifest.files)

    def _check_hashes(self) -> None:
        from concurrent.futures import ThreadPoolExecutor  # here, since this is done once

        with ThreadPoolExecutor(4) as pool:  # hashlib lets go of the interpreter lock
            list(pool.map(self._check_hash, self.manifest.files))

    def _check_hash(self, entry: FileSpec) -> None:
        file = self.path / entry.name
        if entry.sha256 == NOT_HASHED:
            raise ArtifactError("holds no weights: the model was compiled from its configuration alone", file=file, fix="compile the model")
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
