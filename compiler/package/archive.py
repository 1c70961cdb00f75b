"""Zip files with the same bytes for the same content: members in the order given, one date for all, modes that depend on no umask."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cupola.runtime.errors import OptionError

DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say
STORED = (".safetensors",)  # quantized weights become 5 % smaller and take a second for 30 MB
_FILE, _PROGRAM = 0o100644, 0o100755


@dataclass(frozen=True)
class Member:
    """A file of a package.

    Attributes:
        name: its path in there, with `/` between folders.
        content: the bytes, or a file that holds them.
        is_program: whether it may be run.
    """

    name: str
    content: bytes | Path
    is_program: bool = False

    @property
    def num_bytes(self) -> int:
        """The size of its content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def record(self) -> str:
        """Its line in a wheel's RECORD: https://packaging.python.org/en/latest/specifications/recording-installed-packages."""
        if isinstance(self.content, bytes):
            digest = hashlib.sha256(self.content).digest()
        else:
            with self.content.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").digest()
        return f"{self.name},sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()},{self.num_bytes}"


def write_zip(file: Path, members: Sequence[Member]) -> None:
    """Writes the members, all of it or nothing. Raises OptionError if the file can't be written."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(unfinished, "w") as archive:
            for member in members:
                _write(archive, member)
        unfinished.replace(file)
    except OSError as error:
        raise OptionError(
            f"can't be written: {error.strerror}", file=file, field="out", fix="check the disk and its permissions"
        ) from error
    finally:
        with suppress(OSError):  # it was renamed, or never there
            unfinished.unlink()


def write_folder(folder: Path, members: Sequence[Member]) -> None:
    """Writes the members as files of a new folder. Raises OptionError if it is there already, or can't be written."""
    try:
        folder.mkdir(parents=True)
        for member in members:
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(member.content, bytes):
                path.write_bytes(member.content)
            else:
                shutil.copyfile(member.content, path)
            path.chmod((_PROGRAM if member.is_program else _FILE) & 0o777)
    except FileExistsError:
        raise OptionError("exists", file=folder, field="out", fix="remove it, or choose another folder") from None
    except OSError as error:
        raise OptionError(f"can't be written: {error.strerror}", file=folder, field="out", fix="check the disk") from error


def _write(archive: zipfile.ZipFile, member: Member) -> None:
    info = zipfile.ZipInfo(member.name, DATE)
    info.create_system = 3  # Unix, wherever it is made: the modes are Unix's
    info.external_attr = (_PROGRAM if member.is_program else _FILE) << 16
    info.compress_type = zipfile.ZIP_STORED if member.name.endswith(STORED) else zipfile.ZIP_DEFLATED
    info.file_size = member.num_bytes  # says whether 4 GB are enough
    with archive.open(info, "w") as written:
        if isinstance(member.content, bytes):
            written.write(member.content)
        else:
            with member.content.open("rb") as stream:
                shutil.copyfileobj(stream, written, 1 << 20)
