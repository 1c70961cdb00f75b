"""Fixtures and settings that all tests share."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from cupola.runtime.environment import num_threads
from tests.scheduling import Scheduling
from tests.turns import MARK, NUM_TURNS, split

# Compiled code and a shared machine make single examples slow now and then: no deadline. `make test` takes
# hypothesis' own "ci" profile, whose examples are the same on every run.
settings.register_profile("cupola", deadline=None)
settings.load_profile("cupola")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--turn`, which CI gives."""
    what = f"run one of {NUM_TURNS} parts of the tests that are marked {MARK}: that of this number modulo {NUM_TURNS}"
    parser.addoption("--turn", type=int, help=what)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Refines `--dist loadfile`, which `make test` gives."""
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of other turns, which pytest counts as deselected."""
    turn = config.getoption("--turn")
    if turn is not None:
        items[:], others = split(items, turn)
        config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what the developer set, and their cache, out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CUPOLA_DEBUG", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("CUPOLA_NUM_THREADS", str(max(2, num_threads())))  # kernels run in threads, or their races would not show
        patch.setenv("CUPOLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Compiled:
    """An artifact that the command line made, and the most memory that it took, in bytes."""

    path: Path
    peak_bytes: int

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir())


# VmHWM is the process's own: what a parent hears of a child (ru_maxrss) begins with the parent's peak.
COMPILE = """
import atexit, pathlib, sys
from cupola.__main__ import main
def write_peak():
    peak_file.write_text(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
peak_file = pathlib.Path(sys.argv.pop(1))
atexit.register(write_peak)
main()
"""


def compiled(folder: Path, *options: str) -> Compiled:
    """SmolLM2 with 2,048 tokens of context, compiled in a process of its own."""
    out, peak = folder / "artifact", folder / "peak"
    arguments = ["compile", "smollm2", "-o", str(out), "--context", "2048", *options]
    subprocess.run([sys.executable, "-c", COMPILE, str(peak), *arguments], check=True)
    return Compiled(out, int(peak.read_text()) * 1024)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of pytest-xdist have."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


def compiled_once(folder: Path, *options: str) -> Compiled:
    """As `compiled`, by the first worker that asks; others wait for it."""
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, however that comes
        if not (folder / "artifact").exists():
            return compiled(folder, *options)
    return Compiled(folder / "artifact", int((folder / "peak").read_text()) * 1024)


@pytest.fixture(scope="session")
def smollm2(shared_folder: Path) -> Compiled:
    """SmolLM2 in f32."""
    return compiled_once(shared_folder / "smollm2", "--quant", "f32")


@pytest.fixture(scope="session")
def smollm2_w4a8(shared_folder: Path) -> Compiled:
    """SmolLM2 with the blocks of its GGUF file (Q4_1, and Q8_0 for the embedding), activations in int8."""
    return compiled_once(shared_folder / "smollm2-w4a8", "--quant", "w4a8")
