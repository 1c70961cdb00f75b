"""One server for all tests that do it no harm."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.server.harness import Server, run_server, unharmed
from tests.runtime.tiny_artifact import make_artifact

CONTEXT, ENDLESS = 4096, 1 << 16


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the tiny model with a context in which a request can take seconds."""
    return make_artifact(tmp_path_factory.mktemp("server") / "tiny", context=CONTEXT).path


@pytest.fixture
def copy_of_tiny(tiny: Path, tmp_path: Path) -> Path:
    """A copy of `tiny` that may be spoiled."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that it takes minutes to fill: what ends before was cut off."""
    return make_artifact(tmp_path_factory.mktemp("server") / "endless", context=ENDLESS).path


@pytest.fixture(scope="session")
def tiny_server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `tiny`; tests take `server`."""
    with run_server(tiny, tmp_path_factory.mktemp("tiny-server")) as server:
        yield server


@pytest.fixture
def server(tiny_server: Server) -> Iterator[Server]:
    """The server of `tiny`, which must be unharmed at the end of the test."""
    with unharmed(tiny_server):
        yield tiny_server
