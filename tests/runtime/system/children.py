"""Modules for child processes to run, and the two ways in which systems start them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cupola.runtime.system import channel, warm_process
from tests.systems import WITHOUT_POSIX

FOLDER = Path(__file__).parents[2] / "without_posix"
WAYS = ["port"] if WITHOUT_POSIX else ["handed down", "port"]


def take_way(way: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process and its children start processes in one of the two ways, and find modules in `folder`."""
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    if way == "port":
        monkeypatch.setattr(channel, "HANDS_DOWN", False)
        monkeypatch.setattr(warm_process, "HANDS_DOWN", False)
        path.insert(0, str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
