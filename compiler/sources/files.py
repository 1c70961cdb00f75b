"""Reading files that come with a model, none of which is trusted."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from cupola.compiler.sources.base import Array
from cupola.runtime.errors import SourceError

MAX_JSON_BYTES = 64 << 20
"""More than the largest weight index or tokenizer in use, little enough to parse without harm."""


def member(folder: Path, name: str) -> Path | None:
    """The regular file `name` in `folder`, or None if there is none.

    A link may lead elsewhere in the folder, or, in the hub's cache (`…/snapshots/<revision>`), to its `…/blobs`.

    Raises:
        SourceError: the name has folders in it, or is a link that leaves the folder.
    """
    if not 0 < len(name) < 256 or name in (".", "..") or any(character in name for character in "/\\\0"):
        raise SourceError(
            f"refers to {name!r}, which is not the plain name of a file beside it", file=folder, fix="keep all files in one folder"
        )
    path = folder / name
    if not path.is_file():
        return None
    home = folder.resolve()
    homes = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    if not any(path.resolve().is_relative_to(allowed) for allowed in homes):
        raise SourceError("is a link that leads out of the model's folder", file=path, fix="put the file itself there")
    return path


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The UTF-8 text of a file of at most `max_bytes`; SourceError otherwise."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise SourceError(f"has {size:,} bytes, where at most {max_bytes:,} make sense", file=path, fix="check the file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SourceError("is not UTF-8 text", file=path, fix="download it again") from None
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", file=path, fix="check the file and its permissions") from None


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file; SourceError if it is anything else."""
    try:
        value = json.loads(read_text(path, max_bytes), object_hook=_special_float)
    except (ValueError, RecursionError) as error:
        what = (
            f"{error.msg} at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
        )
        raise SourceError(f"is not valid JSON: {what}", file=path, fix="download it again") from None
    if not isinstance(value, dict):
        raise SourceError(f"holds a JSON {type(value).__name__}, not an object", file=path, fix="download it again")
    return value


def _special_float(value: dict[str, Any]) -> Any:
    """The number that transformers writes as {"__float__": "Infinity"}, since JSON has none; any other object as it is."""
    text = value.get("__float__")
    return float(text) if len(value) == 1 and text in ("Infinity", "-Infinity", "NaN") else value


def mapped(path: Path) -> Array:
    """The bytes of a file, mapped and read-only; SourceError if there are none."""
    try:
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except ValueError:
        raise SourceError("is empty", file=path, fix="download it again") from None
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", file=path, fix="check the file and its permissions") from None


def typed(data: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Mapped bytes as values of a type; a view, or a copy where a file puts them at an odd address."""
    values: Array = data.view(dtype).reshape(shape)
    return values if values.flags.aligned else values.copy()


def one_line(error: Exception) -> str:
    """Another library's error on one line, short enough for a message."""
    return " ".join(str(error).split())[:200]


def sha256_of(paths: Iterable[Path]) -> str:
    """One SHA-256 (hex): of the file itself for one, of the sorted names and hashes for several."""
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())).encode()).hexdigest()


def hash_of(paths: Iterable[Path]) -> Callable[[], str]:
    """A function that gives `sha256_of(paths)`: a thread reads the files from now on, while others need no disk."""
    files, found = tuple(paths), Future[str]()

    def read() -> None:
        try:
            found.set_result(sha256_of(files))
        except Exception as error:  # noqa: BLE001  whoever asks for the hash gets it
            found.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return found.result
