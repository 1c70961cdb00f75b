"""Reads `manifest.json` and plans, and checks that they make sense."""

from __future__ import annotations

import reprlib
import stat
from pathlib import Path

from cupola.runtime.artifact.check import check_manifest
from cupola.runtime.artifact.manifest import COMPILE_AGAIN, COPY_AGAIN, FORMAT_VERSION, Manifest
from cupola.runtime.artifact.parse import load_json, parse
from cupola.runtime.artifact.plan import Plan
from cupola.runtime.artifact.plan_check import check_plan
from cupola.runtime.artifact.tensors import FunctionSpec
from cupola.runtime.errors import ArtifactError

MAX_MANIFEST_BYTES = 64 << 20


def read_manifest(file: Path) -> str:
    """The manifest's text."""
    return _read_text(file, "manifest", "is this an artifact's folder? `cupola compile` makes one")


def read_plan(file: Path, forward: FunctionSpec) -> Plan:
    """The plan in `file`, for the `forward` of its manifest. Raises ArtifactError naming `file` and the field."""
    return parse_plan(_read_text(file, "plan", COPY_AGAIN), file, forward)


def _read_text(file: Path, what: str, fix: str) -> str:
    """Only a regular file is opened: a pipe would never end."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"is not a {what}", file=file, fix=fix)
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        raise ArtifactError(f"can't be read: {reason}", file=file, fix=fix) from None


def parse_manifest(text: str, file: Path) -> Manifest:
    """Reads what `Manifest.to_json` wrote, and checks that it makes sense. Raises ArtifactError naming `file` and the field."""
    data = load_json(text, file)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        fix = "upgrade cupola" if isinstance(version, int) and version > FORMAT_VERSION else COMPILE_AGAIN
        found = f"is {reprlib.repr(version)}, this cupola reads {FORMAT_VERSION}"
        raise ArtifactError(found, file=file, field="format_version", fix=fix)
    manifest: Manifest = parse(Manifest, data, file)
    check_manifest(manifest, file)
    return manifest


def parse_plan(text: str, file: Path, forward: FunctionSpec) -> Plan:
    """Reads what `Plan.to_json` wrote, and checks that it makes sense. Raises ArtifactError naming `file` and the field."""
    plan: Plan = parse(Plan, load_json(text, file), file)
    check_plan(plan, forward, file)
    return plan
