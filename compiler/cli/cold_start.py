"""The cold start of a package: how long a new process takes to the end of a short answer, with nothing on its path but what it asks for."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cupola
from cupola.compiler.package.archive import Member, write_folder
from cupola.compiler.package.contents import Contents
from cupola.runtime.environment import environment_with, interpreter
from cupola.runtime.errors import ArtifactError, EngineError

PACKAGES = ("numpy", "numpy.libs", "tokenizers", "jinja2", "markupsafe")
NUM_TOKENS = 4
NUM_TIMES = 5
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class ColdStart:
    """Seconds from the start of a process to its end, with an answer of NUM_TOKENS tokens.

    Attributes:
        first: right after it was installed: Python compiles modules, and every file is held against its hash.
        later: the median of NUM_TIMES more.
    """

    first: float
    later: float


def measure_cold_start(contents: Contents, members: Sequence[Member]) -> ColdStart | None:
    """Unpacks the package beside links to the packages that it needs, and runs it; None if no library runs on this machine.

    Raises:
        EngineError: it doesn't answer.
    """
    try:
        cupola.choose_library(contents.artifact)
    except ArtifactError:
        return None
    with tempfile.TemporaryDirectory(prefix="cupola-", ignore_cleanup_errors=True) as temporary:
        site = Path(temporary) / "site"
        write_folder(site, members)
        for package in PACKAGES:
            if (found := _installed(package)) is not None:
                (site / package).symlink_to(found)
        environment = environment_with({"PYTHONPATH": str(site), "CUPOLA_CACHE": str(Path(temporary) / "cache")})
        settle_seconds = 2.1  # files younger than that are held against their hashes at every start
        time.sleep(settle_seconds)
        first = _run(contents.name, environment, temporary)
        return ColdStart(first, statistics.median(_run(contents.name, environment, temporary) for _ in range(NUM_TIMES)))


def _run(name: str, environment: dict[str, str], folder: str) -> float:
    command = [*interpreter(), "-S", "-m", name, "run", "-p", "Hello", "--max-tokens", str(NUM_TOKENS)]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    if done.returncode:
        raise EngineError(f"the package does not answer: {' '.join(done.stderr.split())[-300:]}")
    return time.perf_counter() - start


def _installed(package: str) -> Path | None:
    """The folder of an installed package, or of the libraries beside one (`numpy.libs`)."""
    spec = importlib.util.find_spec(package.partition(".")[0])
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]).with_name(package)
    return folder if folder.is_dir() else None
