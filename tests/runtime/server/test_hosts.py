"""DNS rebinding: on a loopback address the server answers to this machine's own names, and to those that it was told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cupola.runtime.errors import OptionError
from cupola.runtime.server.hosts import Hosts, check_hosts
from tests.runtime.server.harness import Server, run_server

OWN = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "chat.localhost:1",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.1.2.3",
    "[::1]",
    "[::1]:8000",
    "::1",
]
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost", "0.0.0.0", "192.168.0.1",
    "[::2]", "", ":8000", "evil.example:localhost", "user@localhost", "localhost evil.example", "é.example",
]  # fmt: skip


def status_of(hosts: list[str], allowed: tuple[str, ...]) -> int:
    """The status of a request with these `Host` headers, where 200 is the route's answer."""
    statuses = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"host", host.encode("latin-1")) for host in hosts]
    asyncio.run(Hosts(app, allowed=allowed)({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, send))
    return statuses[0]


@pytest.mark.parametrize("host", OWN)
def test_own_names_are_always_allowed(host: str):
    assert status_of([host], ()) == status_of([host], ("example.org",)) == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(host: str):
    assert status_of([host], ()) == status_of([host], ("example.org",)) == 403
    assert status_of([host], ("*",)) == 200


def test_names_that_are_allowed():
    allowed = check_hosts(["Example.org", "*.lan"])
    assert [status_of([host], allowed) for host in ("example.ORG:80", "a.lan", "b.a.lan.")] == [200] * 3
    assert [status_of([host], allowed) for host in ("a.example.org", "lan", "alan", "example.org.evil.example")] == [403] * 4


def test_each_of_several_headers_counts_and_none_is_allowed():
    assert status_of(["localhost", "evil.example"], ()) == 403
    assert status_of([], ()) == 200


@pytest.mark.parametrize("host", ["", "example.org:80", "http://example.org", "a*.org", "*.", "a b"])
def test_what_is_no_name_is_refused_at_the_start(host: str):
    with pytest.raises(OptionError, match="allowed_hosts"):
        check_hosts([host])


def test_a_server_on_a_loopback_address(server: Server):
    for path in ("/", "/health", "/v1/models"):
        response = server.http.get(path, headers={"Host": "evil.example"})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "host_not_allowed"
        assert "--allowed-hosts" in response.json()["error"]["message"]
        assert response.headers["X-Request-Id"]


def test_a_server_for_others(tiny: Path, tmp_path: Path):
    with run_server(tiny, tmp_path, "--host", "0.0.0.0") as server:
        assert server.http.get("/health", headers={"Host": "llm.example"}).status_code == 200
