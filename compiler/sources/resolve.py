"""From what the user calls a model to a `Source`."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from pathlib import Path

from cupola.compiler.sources.base import Source
from cupola.compiler.sources.builtin import BUILTINS, Progress, bring_builtin
from cupola.compiler.sources.gguf_split import split_files
from cupola.compiler.sources.hub import HUB_ID, download
from cupola.runtime.errors import SourceError, UnsupportedError

_ACCEPTED = (
    "give a GGUF file, a folder with config.json and safetensors, a hub id (organization/name, or organization/name@revision),"
    f" or {', '.join(BUILTINS)}"
)


def _existing(name: str | Path) -> Path | None:
    """The file or folder that `name` is, if it exists; a built-in name always means the built-in model."""
    if not str(name):
        raise SourceError("is empty", field="source", fix=_ACCEPTED)
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _unknown(name: str | Path) -> SourceError:
    near = get_close_matches(str(name).lower(), BUILTINS, n=1)
    return SourceError("no such file, folder or model", file=repr(str(name))[:200], fix=f"did you mean {near[0]}?" if near else _ACCEPTED)


def _open_file(path: Path, name: str) -> Source:
    from cupola.compiler.sources.gguf import open_gguf
    from cupola.compiler.sources.huggingface import PICKLES
    from cupola.compiler.sources.outline import open_outline

    if not path.is_file():
        raise SourceError("is not a regular file", file=path, fix=_ACCEPTED)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", file=path, fix="check its permissions") from None
    if magic == b"GGUF" or path.suffix == ".gguf":
        return open_gguf(path, name)
    if path.suffix in PICKLES:
        raise SourceError("is a pickle, which may run code and is never opened", file=path, fix="give the weights as safetensors")
    if path.suffix == ".json":
        return open_outline(path, name)
    if path.suffix == ".safetensors":
        raise SourceError("holds weights and no configuration", file=path, fix="give the folder that also has its config.json")
    raise UnsupportedError("is not a model file that is read here", file=path, fix=_ACCEPTED)


def _open_folder(folder: Path, name: str, trust_remote_code: bool) -> Source:
    from cupola.compiler.sources.huggingface import open_huggingface

    if not (folder / "config.json").is_file():
        if (folder / "manifest.json").is_file():
            raise SourceError("is a compiled artifact already", file=folder, fix="run it, or give the model that it was compiled from")
        if gguf := sorted(folder.glob("*.gguf")):
            raise SourceError("has GGUF files and no config.json", file=folder, fix=f"give the file, such as {gguf[0]}")
    return open_huggingface(folder, name, trust_remote_code)


def open_source(name: str | Path, *, trust_remote_code: bool = False, progress: Progress | None = None) -> Source:
    """Open a model: read and check everything but the weights' values, which stay lazy.

    Args:
        name: a GGUF file; a folder with `config.json` and safetensors; a `config.json` alone, of which an outline is made; a built-in name
            (`BUILTINS`), which is meant even if there is a folder of that name (`./name` is the folder);
            a hub id, `organization/name` or `organization/name@revision`.
        trust_remote_code: changes only what the refusal of a model with code of its own says.
        progress: is told, in a line, what takes time.

    Raises:
        SourceError: nothing has that name; a file is missing, damaged, unsafe or could not be brought.
        UnsupportedError: a model or feature that cupola cannot compile.
    """
    if isinstance(name, str) and name in BUILTINS:
        source = _open_file(bring_builtin(name, progress), name)
        if source.sha256 != BUILTINS[name].sha256:
            raise SourceError("does not have the expected SHA-256", file=bring_builtin(name), fix="delete the file and try again")
        return source
    path = _existing(name)
    if path is None:
        if isinstance(name, str) and HUB_ID.fullmatch(name):
            return _open_folder(download(name, progress), name, trust_remote_code)
        raise _unknown(name)
    return _open_folder(path, str(name), trust_remote_code) if path.is_dir() else _open_file(path, str(name))


def fingerprint(name: str | Path) -> str:
    """A quick key (hex) for what `open_source(name)` would open, to find what was compiled from it before.

    Nothing is opened: of a file or folder it takes the resolved path and every file's name, size and time of change; of a
    built-in model its pinned hash. Of a hub id it takes the id alone, so it does not see that the hub has a newer version.

    Raises:
        SourceError: nothing has that name.
    """
    if isinstance(name, str) and name in BUILTINS:
        return BUILTINS[name].sha256
    path = _existing(name)
    if path is None:
        if isinstance(name, str) and HUB_ID.fullmatch(name):
            return hashlib.sha256(f"hub\0{name}".encode()).hexdigest()
        raise _unknown(name)
    files = sorted(path.iterdir()) if path.is_dir() else split_files(path)
    files = [each for each in files if each.is_file()]
    seen = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    return hashlib.sha256(repr((str(path.resolve()), seen)).encode("utf-8", "surrogateescape")).hexdigest()
