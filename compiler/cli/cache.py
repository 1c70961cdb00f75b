"""Artifacts compiled on the way, kept in the user's cache: one for each source and set of options.

    <cache>/artifacts/<name>-<hash of source and options>/<hash of cupola and TVM>/

A new cupola compiles again and replaces what the old one made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from cupola.compiler.artifact_folder import remove_leftovers
from cupola.compiler.build_id import build_id
from cupola.compiler.cli.declare import Exit
from cupola.compiler.compile import compile_apart
from cupola.compiler.options import CompileOptions, short_name
from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.manifest import MANIFEST
from cupola.runtime.environment import cache_folder
from cupola.runtime.errors import ArtifactError, OptionError, UnsupportedError


def cached_artifact(source: str, options: CompileOptions) -> Path:
    """The folder of the artifact for `source`, compiled now if the cache lacks it.

    Raises:
        InputError: the source can't be read.
        Exit: the compile failed, and has said why.
    """
    if importlib.util.find_spec("tvm") is None:
        fix = "pip install 'cupola[compiler]', or compile it on another machine"
        raise UnsupportedError("is no artifact's folder, and the compiler's packages are not installed", file=source, fix=fix)
    folder = artifact_folder(source, options)
    if not _is_whole(folder):
        _make_folder(folder.parent)
        print(f"Compiling {source} for this machine, once.", file=sys.stderr, flush=True)
        code = compile_apart(source, options, folder).returncode
        if not _is_whole(folder):
            raise Exit(code or 1)
        _remove_older(folder)
    return folder


def artifact_folder(source: str, options: CompileOptions) -> Path:
    """Where the artifact for `source` belongs; reads the source's fingerprint, not its weights."""
    from cupola.compiler.sources import fingerprint

    key = _digest(json.dumps([fingerprint(source), asdict(options)]).encode())
    return cache_folder() / "artifacts" / f"{short_name(source)}-{key}" / build_id()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """True if an artifact can be opened there; a damaged one is removed."""
    if not folder.exists():
        return False
    try:
        Artifact.open(folder, verify=False)
    except ArtifactError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise OptionError(problem, file=folder, field="CUPOLA_CACHE", fix="set it to a folder that can be written to") from None


def _remove_older(folder: Path) -> None:
    remove_leftovers(folder.parent)
    for other in folder.parent.iterdir():
        if other != folder and (other / MANIFEST).exists():
            shutil.rmtree(other, ignore_errors=True)
