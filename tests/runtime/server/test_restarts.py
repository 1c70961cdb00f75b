"""An engine that dies is started again, however often that fails at first; one that never started is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.errors import ArtifactError, CupolaError, EngineError
from cupola.runtime.server import messages as m
from cupola.runtime.server import service as s
from cupola.runtime.server.artifact_watch import ArtifactWatch

READY = m.Ready(64, 8, 4)


class Client:
    """An engine whose start, or whose load, fails with `error`; None is one that comes up and dies when it is told to."""

    def __init__(self, error: Exception | None) -> None:
        self._error, self.died = error, asyncio.Event()

    async def start(self) -> None:
        if isinstance(self._error, OSError):
            raise self._error

    async def ready(self) -> m.Ready:
        if self._error is not None:
            raise self._error
        return READY

    async def close(self) -> None:
        pass


def serve(tiny: Path, errors: Sequence[Exception | None]) -> tuple[int, CupolaError | None]:
    """How many clients a service uses up, and why it gives up; each that comes up dies at once, the last one lives."""
    clients = [Client(error) for error in errors]
    used = []

    class Service(s.Service):
        def _new_client(self):
            used.append(clients[len(used)])
            if used[-1] is not clients[-1]:
                used[-1].died.set()
            return used[-1]

    async def run() -> CupolaError | None:
        service = Service(
            Artifact.open(tiny),
            m.Start(str(tiny), "", m.EngineConfig(), 0, None, None, 0, None, None, "10GB", None),
            s.ServerConfig(("model",)),
        )
        await service.open()
        while not service.stopped.is_set() and len(used) < len(clients):
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        await service.close()
        return service.failure

    return asyncio.run(run()), len(used)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s, "MAX_PAUSE_SECONDS", 0)


NO_DESCRIPTOR = OSError(24, "Too many open files")
NO_MEMORY = EngineError("there is not enough memory")


def test_what_passes_is_waited_for(tiny: Path):
    assert serve(tiny, [None, NO_DESCRIPTOR, NO_DESCRIPTOR, NO_MEMORY, None, NO_MEMORY, None]) == (None, 7)


def test_what_does_not_pass_ends_the_server(tiny: Path):
    failure, num_used = serve(tiny, [None, *[NO_DESCRIPTOR] * s.MAX_FAILED_STARTS, None])
    assert "Too many open files" in str(failure)
    assert num_used == 1 + s.MAX_FAILED_STARTS


@pytest.mark.parametrize("error", [NO_DESCRIPTOR, NO_MEMORY])
def test_what_never_started_would_only_fail_again(tiny: Path, error: Exception):
    failure, num_used = serve(tiny, [error, None])
    assert isinstance(failure, EngineError) and num_used == 1


def test_a_damaged_artifact_is_not_tried_again(tiny: Path):
    assert serve(tiny, [None, ArtifactError("is gone"), None])[1] == 2


def test_an_error_of_the_server_itself_ends_it(tiny: Path, caplog: pytest.LogCaptureFixture):
    failure, _ = serve(tiny, [KeyError("a bug"), None])
    assert "a bug" in str(failure)


def test_files_that_are_touched_are_still_the_same(tiny: Path, copy_of_tiny: Path):
    watch = ArtifactWatch(Artifact.open(copy_of_tiny))
    for file in copy_of_tiny.iterdir():
        file.touch()
    watch.look()


def test_files_that_are_written_over_are_noticed(copy_of_tiny: Path):
    watch = ArtifactWatch(Artifact.open(copy_of_tiny))
    with (copy_of_tiny / "weights-00001.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"other")
    with pytest.raises(ArtifactError, match="written over"):
        watch.look()


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_files_that_are_replaced_are_told_of_once(copy_of_tiny: Path, how: str, caplog: pytest.LogCaptureFixture):
    watch = ArtifactWatch(Artifact.open(copy_of_tiny))
    weights = copy_of_tiny / "weights-00001.safetensors"
    content = weights.read_bytes()
    weights.rename(copy_of_tiny / "old")
    if how == "replaced":
        weights.write_bytes(content)
    watch.look()
    watch.look()
    assert sum("replaced" in record.message for record in caplog.records) == 1
