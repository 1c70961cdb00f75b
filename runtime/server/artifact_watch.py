"""Looks after the files of the artifact that is served: a recompile or a copy may replace them under the running server.

The engine maps the weights. A file that is replaced (another inode) leaves the mapped one whole, and the server goes on with what it
loaded; a file that is written over changes the weights of the model while it answers.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path

from cupola.runtime.artifact.folder import Artifact, sha256_of
from cupola.runtime.artifact.manifest import COPY_AGAIN, FileSpec
from cupola.runtime.errors import ArtifactError
from cupola.runtime.server.logs import log

SECONDS = 5.0  # between two looks, which only ask the system for the files' times


@dataclass
class ArtifactWatch:
    """Watches an artifact from when it is made, which must be before the engine loads the artifact."""

    artifact: Artifact
    _states: dict[FileSpec, os.stat_result | None] = field(init=False)
    _replaced: bool = False

    def __post_init__(self) -> None:
        self._states = {entry: _state_of(self.artifact.path / entry.name) for entry in self.artifact.manifest.files}

    async def run(self) -> ArtifactError:
        """Watches until a file has other content than what was loaded, and gives the error that says so."""
        while True:
            await asyncio.sleep(SECONDS)
            try:
                await asyncio.to_thread(self.look)
            except ArtifactError as error:
                return error

    def look(self) -> None:
        """Looks once. Raises ArtifactError if a file was written over; says in the log, once, that one was replaced."""
        for entry, before in self._states.items():
            file = self.artifact.path / entry.name
            now = _state_of(file)
            if before is None or now is None or (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
                self._report_replaced(file)
            elif (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                if sha256_of(file) != entry.sha256:
                    fix = f"{COPY_AGAIN}, into another folder or after the server has ended"
                    raise ArtifactError("was written over while it is served", file=file, fix=fix)
                self._states[entry] = now

    def _report_replaced(self, file: Path) -> None:
        if not self._replaced:
            self._replaced = True
            message = "the artifact's files were replaced or removed; the model that was loaded is served on until the server is restarted"
            log.warning(message, extra={"fields": {"file": str(file)}})


def _state_of(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None
