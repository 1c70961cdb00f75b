"""Answers jobs, a JSON job a line in, a JSON answer a line out, by a script that knows how. Run as a script by `worker_process.py`.

Imports nothing of cupola, so that it starts fast and holds nothing that what it works on could be after. Memory is limited, and so is
processor time for each job.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

LIMITS = Path(__file__).with_name("system") / "limits.py"


def main(file: str, max_seconds: str, *arguments: str) -> None:
    """Answers jobs by the script in `file` until standard input ends."""
    limits, script = load(LIMITS), load(Path(file))
    limits.limit_memory(script.MAX_MEMORY_BYTES)  # a huge allocation fails here instead of filling the machine
    answer = script.prepare(*arguments)
    for line in sys.stdin:
        job = json.loads(line)
        with limits.Allowance(float(max_seconds) + 1):  # even when nobody is left to end this process
            written = json.dumps(answer(job))
        sys.stdout.write(written + "\n")
        sys.stdout.flush()


def load(file: Path) -> ModuleType:
    """A Python file as a module, whether or not there is a package around it."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
