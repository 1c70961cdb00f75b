"""Dependencies that are pinned because other versions crash: the pin is what is installed, and what crashed works."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
SCRIPT = Path(__file__).with_name("save_and_tensorize.py")  # a process of its own, for what may crash


def test_the_pinned_tvm_ffi_is_installed() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    for extra in ("compiler", "serve"):
        pins = dict(line.split("==") for line in extras[extra] if "==" in line)
        assert importlib.metadata.version("apache-tvm-ffi") == pins["apache-tvm-ffi"], extra


def test_saving_a_module_and_tensorizing_do_not_crash() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both work\n"
