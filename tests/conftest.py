"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from cupola.runtime.environment import num_threads

# Compiled code and a shared machine make single examples slow now and then: no deadline. `make test` takes
# hypothesis' own "ci" profile, whose examples are the same on every run.
settings.register_profile("cupola", deadline=None)
settings.load_profile("cupola")


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what the developer set, and their cache, out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CUPOLA_DEBUG", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("TVM_NUM_THREADS", str(max(2, num_threads())))  # kernels run in threads, or their races would not show
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


def compiled(folder: Path, *options: str) -> Compiled:
    """SmolLM2 with 2,048 tokens of context, compiled in a process of its own."""
    out = folder / "artifact"
    command = [sys.executable, "-m", "cupola", "compile", "smollm2", "-o", str(out), "--context", "2048", *options]
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)  # its own: of all children, some browser may have been the largest
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return Compiled(out, usage.ru_maxrss * 1024)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """SmolLM2 in f32."""
    return compiled(tmp_path_factory.mktemp("smollm2"), "--quant", "f32")


@pytest.fixture(scope="session")
def smollm2_w4a8(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """SmolLM2 with the blocks of its GGUF file (Q4_1, and Q8_0 for the embedding), activations in int8."""
    return compiled(tmp_path_factory.mktemp("smollm2-w4a8"), "--quant", "w4a8")
