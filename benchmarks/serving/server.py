"""`cupola serve` in a process of its own, and requests to it over HTTP with the standard library alone."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 120.0


class Server:
    """Where a server listens."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def get(self, path: str) -> int:
        """The status of an answer to a GET."""
        with self._connected() as connection:
            connection.request("GET", path)
            return connection.getresponse().status

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises RuntimeError if it is refused."""
        with self._connected() as connection:
            answer: dict[str, Any] = json.loads(_send(connection, path, body).read())
            return answer

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        """The events of a streamed answer, each with its time, in seconds of `time.perf_counter()`. Closing the iterator hangs up."""
        with self._connected() as connection:
            response = _send(connection, path, {**body, "stream": True})
            for line in response:
                if line.startswith(b"data: {"):
                    yield time.perf_counter(), json.loads(line[6:])

    @contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        try:
            yield connection
        finally:
            connection.close()


def _send(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{path} answers {response.status}: {response.read().decode()}")
    return response


@contextmanager
def serving(artifact: Path, options: Sequence[str]) -> Iterator[Server]:
    """A server of `artifact` that has its model loaded. Raises RuntimeError with what it said if it does not come up."""
    command = [sys.executable, "-P", "-m", "cupola", "serve", str(artifact), "--port", "0", "--log-format", "json", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        server = _find(process.stderr)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or the server would wait for a reader of its log
        deadline = time.monotonic() + PATIENCE_SECONDS
        while server.get("/health") != 200:
            if time.monotonic() > deadline:
                raise RuntimeError("the server does not become ready")
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait()


def _find(log: IO[str]) -> Server:
    said = []
    for line in log:
        said.append(line)
        if '"listening"' in line:
            url = urlsplit(json.loads(line)["url"])
            return Server(url.hostname or "", url.port or 0)
    raise RuntimeError("the server does not start: " + "".join(said))
