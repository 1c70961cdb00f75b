"""`cupola run` whose answer has nowhere to go: at most one line, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.systems import WITHOUT_POSIX

OUTPUTS = {
    "closed": (">&-", 2, ["error: standard output: is closed (give the answer somewhere to go)"]),
    "nobody reads": ("> >(exec true)", 1, []),  # as for every program whose reader has had enough
    "full": ("> /dev/full", 1, ["error: [Errno 28] No space left on device"]),
}
WARNING = "this system limits no process's memory"


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_answer_that_nobody_takes(tiny: Path, output: str):
    redirection, code, lines = OUTPUTS[output]
    command = f'exec "{sys.executable}" -m cupola run "{tiny}" --raw -p a --max-tokens 3000 {redirection}'
    done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == code
    assert [line for line in done.stderr.splitlines() if not (WITHOUT_POSIX and WARNING in line)] == lines
