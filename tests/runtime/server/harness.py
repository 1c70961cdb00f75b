"""A real `cupola serve` in a process of its own, and what must be true of it whatever it was sent."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
PATIENCE = 60.0  # seconds after which something hangs
GREEDY = {"prompt": [72, 105, 32, 116], "max_tokens": 80, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class NoRoom(AssertionError):
    """A request was refused because too many others wait."""


class Server:
    """A running server. `log` is the file that its standard error goes to."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, api_key: str | None) -> None:
        self.process, self.log = process, log
        self.base_url = eventually(self._url)
        self.http = httpx.Client(
            base_url=self.base_url, timeout=PATIENCE, trust_env=False, headers={"Authorization": f"Bearer {api_key}"} if api_key else None
        )
        self._greedy: tuple[str, list[int]] | None = None

    def _url(self) -> str | None:
        assert self.process.poll() is None, f"the server did not start: {self.log.read_text()}"
        return next((line["url"] for line in self.lines() if line["message"] == "listening"), None)

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.base_url)
        assert url.port is not None
        return url.host, url.port

    def lines(self) -> list[dict[str, Any]]:
        """The log's lines; what is no JSON, such as a traceback, is an error's."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines(keepends=True):
            try:
                found.append(json.loads(line))
            except ValueError:
                if line.endswith("\n"):
                    found.append({"level": "error", "message": line})
        return found

    def errors(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["level"] == "error"]

    def post(self, body: Any, path: str = COMPLETIONS) -> httpx.Response:
        """Posts `body`: bytes as they are, anything else as JSON."""
        if isinstance(body, bytes):
            return self.http.post(path, content=body, headers={"Content-Type": "application/json"})
        return self.http.post(path, json=body)

    def complete(self, **body: Any) -> dict[str, Any]:
        """A completion that must go well."""
        response = self.post(body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def events(self, body: dict[str, Any], path: str = COMPLETIONS) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer, which must be whole."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code == 429:
                raise NoRoom(response.read())
            assert response.status_code == 200, response.read()
            received, done = b"", False
            for data in response.iter_raw():
                *events, received = (received + data).split(b"\n\n")
                for event in events:
                    if event == b": keep-alive":
                        continue
                    assert event.startswith(b"data: ") and not done, event
                    done = event == b"data: [DONE]"
                    if not done:
                        yield json.loads(event.removeprefix(b"data: "))
            assert done and not received, "the stream ended without [DONE]"

    def greedy(self) -> tuple[str, list[int]]:
        """Text and tokens of one greedy request, streamed."""
        text, token_ids = "", []
        for event in self.events(GREEDY):
            assert "choices" in event, event
            text += event["choices"][0]["text"]
            token_ids += event["choices"][0]["token_ids"]
        return text, token_ids

    def greedy_alone(self) -> tuple[str, list[int]]:
        """The result of `greedy` when nothing runs beside it."""
        if self._greedy is None:
            self.wait_idle()
            self._greedy = self.greedy()
            assert len(self._greedy[1]) == GREEDY["max_tokens"]
        return self._greedy

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def send_raw(self, request: bytes, *, end: bool = False) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a request as it goes over the wire; with `end`, nothing more is sent."""
        with self.connect() as connection:
            connection.sendall(request)
            if end:
                connection.shutdown(socket.SHUT_WR)
            with http.client.HTTPResponse(connection) as response:
                response.begin()
                body = response.read()
                return response.status, json.loads(body) if body.startswith(b"{") else {"text": body.decode()}

    def start_request(self, body: dict[str, Any], path: str = COMPLETIONS) -> socket.socket:
        """Sends a request and leaves the answer unread."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        connection = self.connect()
        connection.sendall(head.encode() + content)
        return connection

    def metrics(self) -> dict[str, float]:
        """The figures without labels of their own, by their names without the prefix."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {sample.name.removeprefix("cupola:"): sample.value for sample in samples if set(sample.labels) <= {"model_name"}}

    def is_idle(self) -> bool:
        figures = self.metrics()
        return not any(figures[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"))

    def wait_idle(self) -> None:
        """Waits until nothing runs, nothing waits and no block is held."""
        eventually(self.is_idle)

    def health(self) -> tuple[int, str]:
        response = self.http.get("/health")
        return response.status_code, response.json()["status"]

    def engine(self) -> psutil.Process:
        """The engine's process."""
        return engine_of(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal, waits for the end, and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def engine_of(server_id: int) -> psutil.Process:
    """The engine's process under a server's."""
    children = [child for child in psutil.Process(server_id).children() if child.status() != psutil.STATUS_ZOMBIE]
    return next(child for child in children if any("engine_process" in part for part in child.cmdline()))


def eventually(probe: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The result of `probe` once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline, f"{getattr(probe, '__name__', probe)} was not true in {seconds} s"
        time.sleep(0.01)
    return found


@contextmanager
def run_server(artifact: Path, folder: Path, *options: str, api_key: str | None = None, ready: bool = True) -> Iterator[Server]:
    """A server of `artifact` with a log in `folder`; it is killed at the end if it still runs."""
    log = folder / "server.log"
    key = ("--api-key", api_key) if api_key else ()
    command = [sys.executable, "-m", "cupola", "serve", str(artifact), "--port", "0", "--log-format", "json", *key, *options]
    with log.open("wb") as file, subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file) as process:
        try:
            server = Server(process, log, api_key)
            with server.http:
                if ready:
                    eventually(lambda: server.health()[0] == 200)
                yield server
        finally:
            process.kill()


@contextmanager
def unharmed(server: Server) -> Iterator[None]:
    """Within the context, greedy requests run beside whatever is sent. Afterwards the four invariants are checked:

    the same processes are alive and none complained, the greedy answers are what they are alone, no request and no block is left,
    and `/health` says 200.
    """
    expected = server.greedy_alone()
    started, stop = threading.Event(), threading.Event()

    def accompany() -> list[tuple[str, list[int]]]:
        answers = []
        while not answers or not stop.is_set():
            started.set()
            answers.append(server.greedy())
        return answers

    with unharmed_alone(server), ThreadPoolExecutor(1) as pool:
        companion = pool.submit(accompany)
        started.wait()
        try:
            yield
        finally:
            stop.set()
        assert all(answer == expected for answer in companion.result())


def greedy_if_taken(server: Server) -> tuple[str, list[int]] | None:
    """A greedy answer; None if the server had yet to read what others had sent, idle though it was."""
    try:
        return server.greedy()
    except NoRoom:
        return None


@contextmanager
def unharmed_alone(server: Server) -> Iterator[None]:
    """As `unharmed`, with the greedy request after what is sent, for what fills the server."""
    expected = server.greedy_alone()
    engine, num_errors = server.engine(), len(server.errors())
    yield
    server.wait_idle()
    assert eventually(lambda: greedy_if_taken(server)) == expected
    assert server.process.poll() is None
    assert server.engine() == engine
    server.wait_idle()
    assert server.health() == (200, "ready")
    assert server.errors()[num_errors:] == []


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error that a response must be, in OpenAI's shape."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:1000]}"
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and len(error["message"]) < 2000 and "\n" not in error["message"]
    assert "Traceback" not in error["message"]
    return error
