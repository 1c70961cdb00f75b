"""The benchmark of `cupola serve` runs, against real servers, and says what it found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.tiny_artifact import make_artifact

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving"
SPREAD = r"[\d.]+ \([\d.]+ to [\d.]+\)"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("serving") / "tiny", context=4096).path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_latency(tiny: Path) -> None:
    done = run("latency", tiny, "--rounds", 1, "--streams", 2, "--tokens", 300)
    assert done.returncode == 0, done.stderr
    assert [len(re.findall(SPREAD, line)) for line in done.stdout.splitlines()] == [0, 0, 4, 4]


def test_chat(tiny: Path) -> None:
    done = run("chat", tiny, "--rounds", 1, "--tokens", 200, "--answer-tokens", 20)
    assert done.returncode == 0, done.stderr
    assert [len(re.findall(SPREAD, line)) for line in done.stdout.splitlines()] == [0, 1, 1, 1]
    first, second, cached = map(int, re.findall(r"(\d+) (?:tokens|of them)", done.stdout))
    assert first - 8 <= cached < second  # all but the last block, and what the answer changed of the last word


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    done = run("chat", tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the server does not start: ")
    assert "Traceback" not in done.stderr
