"""A process keeps the memory that it was given, or refuses the model with what would be enough."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import Compiled

BENCHMARK = Path(__file__).parents[2] / "benchmarks/memory"


def measured(artifact: Path, *megabytes: str) -> list[str]:
    done = subprocess.run([sys.executable, BENCHMARK, artifact, *megabytes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_smollm2_keeps_its_budget(smollm2_w4a8: Compiled) -> None:
    (refused,) = measured(smollm2_w4a8.path, "150")
    enough = re.search(r"memory_budget: is 150 MB; .* 256 tokens of context .* \(give at least (\d+) MB", refused)
    assert enough, refused
    least, more = measured(smollm2_w4a8.path, enough[1], str(int(enough[1]) + 30))
    found = re.search(r"within it: (\d+) of 2,048 tokens of context, 1 sequence", least)
    assert found, least
    assert 256 <= int(found[1]) <= 256 + 7 * 16  # a megabyte is three blocks of tokens, and processes differ by one or so
    assert "within it" in more and int(re.findall(r"([\d,]+) of 2,048", more)[0].replace(",", "")) > 1000
