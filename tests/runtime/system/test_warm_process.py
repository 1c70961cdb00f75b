"""Processes that have prepared: forks of one, or, where nothing forks, each by itself and one ahead."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from cupola.runtime.system.channel import Connection
from cupola.runtime.system.warm_process import WarmProcess
from tests.runtime.system.children import WAYS, take_way
from tests.runtime.system.test_channel import receive

MODULE = """
import json, os, sys
from cupola.runtime.system.warm_process import serve
def answer(prepared, connection):
    connection.sendall(json.dumps([prepared, os.getpid()]).encode().ljust(100))
    while data := connection.recv(100):
        connection.sendall(data)
serve(sys.argv[1], os.getpid, answer)
"""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "warm_for_tests.py").write_text(MODULE)
    take_way(request.param, tmp_path, monkeypatch)
    return str(request.param)


def opened(warm: WarmProcess) -> tuple[Connection, int, int]:
    """A process's channel, the id of who prepared, and its own."""
    connection = warm.open()
    connection.setblocking(False)
    prepared_by, own = json.loads(receive(connection, 100))
    return connection, prepared_by, own


def kill_children() -> None:
    children = psutil.Process().children()
    for child in children:
        child.kill()
    assert not psutil.wait_procs(children, 60)[1]


def test_each_has_prepared_and_ends_with_its_channel(way: str) -> None:
    warm = WarmProcess("warm_for_tests", [])
    found = [opened(warm) for _ in range(3)]
    connections, prepared_by, own = zip(*found, strict=True)
    assert len(set(own)) == 3
    assert len(set(prepared_by)) == 1 and prepared_by[0] not in own if way == "handed down" else prepared_by == own
    processes = [psutil.Process(number) for number in own]
    connections[0].close()
    assert not psutil.wait_procs(processes[:1], 60)[1]
    warm.close()  # the others go on
    connections[1].send(b"still here")
    assert receive(connections[1], 10) == b"still here"
    for connection in connections[1:]:
        connection.close()
    assert not psutil.wait_procs(processes, 60)[1]


def test_none_is_left_when_it_is_forgotten(way: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    warm = WarmProcess("warm_for_tests", [])
    connection, _, _ = opened(warm)
    started = set(psutil.Process().children(recursive=True)) - before
    assert len(started) == 2  # that one, and who is forked or next
    connection.close()
    del warm
    assert not psutil.wait_procs(started, 60)[1]


def test_it_starts_again_after_it_was_closed_or_killed(way: str) -> None:
    warm = WarmProcess("warm_for_tests", [])
    for end in (warm.close, kill_children):
        connection, _, _ = opened(warm)
        connection.close()
        end()
    if way == "handed down":
        connection, _, _ = opened(warm)
        connection.close()
    warm.close()
