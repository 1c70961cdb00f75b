"""Clients that leave, stall, crowd or have no key: group 6 of the bad inputs."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.runtime.server.conftest import ENDLESS
from tests.runtime.server.harness import CHAT, COMPLETIONS, Server, error_of, eventually, run_server, unharmed, unharmed_alone

MAX_SEQS, MAX_QUEUE = 3, 5
LONG = {"prompt": [1, 2, 3], "max_tokens": ENDLESS, "temperature": 0, "ignore_eos": True}
LONG_CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": ENDLESS - 100, "temperature": 0, "ignore_eos": True}
SLOW_PROMPT = {"prompt": [5] * (ENDLESS - 10), "max_tokens": 1, "prompt_logprobs": 0}  # logits of every token, over all before


@pytest.fixture(scope="module")
def small(endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with few places, of a model whose requests end only when they are cut off."""
    options = ["--max-num-seqs", str(MAX_SEQS), "--max-queue", str(MAX_QUEUE), "--max-num-batched-tokens", "16", "--send-timeout", "3"]
    with run_server(endless, tmp_path_factory.mktemp("small"), *options) as server:
        yield server


def running(server: Server, count: int, waiting: int = 0) -> None:
    """Waits until so many sequences run and wait."""
    eventually(lambda: (lambda m: (m["num_requests_running"], m["num_requests_waiting"]) == (count, waiting))(server.metrics()))


def num_aborted(server: Server) -> int:
    """Completions that nobody waited for."""
    found = re.search(r'request_success_total\{finished_reason="abort",.*\} (.*)', server.http.get("/metrics").text)
    return int(float(found[1])) if found else 0


def close_hard(connection: socket.socket) -> None:
    """Ends a connection with a reset, as a killed program's is."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


CLOSE = {"closed": socket.socket.close, "reset": close_hard}
WAYS = {
    "completion": (LONG, COMPLETIONS),
    "completion, streamed": ({**LONG, "stream": True}, COMPLETIONS),
    "many, streamed": ({**LONG, "n": 2, "stream": True}, COMPLETIONS),
    "many prompts": ({**LONG, "prompt": [[1], [2]]}, COMPLETIONS),
    "chat": (LONG_CHAT, CHAT),
    "chat, streamed": ({**LONG_CHAT, "stream": True}, CHAT),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", CLOSE)
def test_leaving_while_decoding(small: Server, way: str, end: str):
    """With a companion, whose sequence is one of those that run."""
    body, path = WAYS[way]
    with unharmed_alone(small):
        before, aborted = small.metrics()["generation_tokens_total"], num_aborted(small)
        connection = small.start_request(body, path)
        if body.get("stream"):
            eventually(lambda: b"data: " in connection.recv(1 << 16))
        eventually(lambda: small.metrics()["generation_tokens_total"] > before + 10)
        CLOSE[end](connection)
        eventually(lambda: num_aborted(small) == aborted + (2 if "many" in way else 1))


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_while_the_prompt_is_computed(small: Server, stream: bool):
    with unharmed(small):
        body = {name: value for name, value in SLOW_PROMPT.items() if not stream or name != "prompt_logprobs"}  # which no stream has
        with small.start_request({**body, "stream": stream}):
            eventually(lambda: small.metrics()["kv_cache_usage_perc"] > 0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue(small: Server, stream: bool):
    with unharmed_alone(small), contextlib.ExitStack() as stack:
        for _ in range(MAX_SEQS):
            stack.enter_context(small.start_request(LONG))
        running(small, MAX_SEQS)
        queued = [small.start_request({**LONG, "stream": stream}) for _ in range(2)]
        running(small, MAX_SEQS, 2)
        queued[0].close()
        running(small, MAX_SEQS, 1)
        close_hard(queued[1])
        running(small, MAX_SEQS)


def test_leaving_with_half_a_request(small: Server):
    with unharmed(small):
        for part in (b"", b"POST /v1/compl", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"):
            with small.connect() as connection:
                connection.sendall(part)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        for end in CLOSE.values():
            connection = small.connect()
            connection.sendall(head + b'{"prompt"')
            end(connection)


def test_leaving_at_once_and_often(small: Server):
    with unharmed_alone(small):
        for i in range(100):
            small.start_request({**LONG, "stream": bool(i % 2)}, CHAT if i % 5 == 0 else COMPLETIONS).close()


def stalled(server: Server, body: dict[str, Any]) -> socket.socket:
    """A connection with a small window, whose request was sent."""
    content = json.dumps(body).encode()
    connection = socket.socket()
    connection.settimeout(60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(server.address)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def num_connections(server: Server) -> int:
    return sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(server.process.pid).net_connections("tcp"))


def test_readers_that_stall(small: Server):
    """Their requests end in the engine, they take nobody's place, and they are cut off in the end."""
    wide = {"prompt": "a", "max_tokens": 1500, "stream": True, "logprobs": 20, "ignore_eos": True, "temperature": 0}
    with unharmed_alone(small):
        before = num_connections(small)
        connections = []
        for _ in range(MAX_SEQS + MAX_QUEUE + 1):  # more than may wait, were they all to count
            connections.append(stalled(small, wide))
            eventually(lambda: small.metrics()["num_requests_waiting"] == 0)
        assert small.greedy() == small.greedy_alone()
        small.wait_idle()
        eventually(lambda: num_connections(small) <= before)
        for connection in connections:
            connection.close()


def test_a_slow_reader_gets_all(small: Server):
    body = {"prompt": "a", "max_tokens": 300, "stream": True, "logprobs": 20, "ignore_eos": True, "temperature": 0}
    with unharmed(small), stalled(small, body) as connection:
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(4000)
    assert received.count(b"data: ") >= 300


def test_ten_times_the_capacity(small: Server):
    """Each is served or told when to try again; none is lost, and none gets another's answer."""
    capacity = MAX_SEQS + MAX_QUEUE
    expected = small.greedy_alone()
    body = {"prompt": [72, 105, 32, 116], "max_tokens": 80, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    with unharmed_alone(small), ThreadPoolExecutor(10 * capacity) as pool:
        responses = list(
            pool.map(lambda _: httpx.post(small.base_url + COMPLETIONS, json=body, timeout=60, trust_env=False), range(10 * capacity))
        )
        refused = [response for response in responses if response.status_code == 429]
        served = [response for response in responses if response.status_code == 200]
        assert len(served) + len(refused) == 10 * capacity
        assert len(served) >= capacity
        for response in served:
            choice = response.json()["choices"][0]
            assert (choice["text"], choice["token_ids"]) == expected
        for response in refused:
            assert error_of(response, 429)["code"] == "queue_full"
            assert 1 <= int(response.headers["Retry-After"]) <= 60


def test_what_would_never_fit_is_refused_while_others_wait(small: Server):
    with unharmed_alone(small), small.start_request(LONG):
        running(small, 1)
        for stream in (False, True):
            error_of(small.post({**LONG, "n": MAX_SEQS + MAX_QUEUE, "stream": stream}), 429)


@pytest.mark.parametrize(
    "model", ["gpt-4", "", "tiny ", "TINY", "../tiny", "tiny\0", "a" * 100_000, "\u202e"], ids=lambda name: ascii(name[:9])
)
def test_wrong_model(server: Server, model: str):
    messages = [{"role": "user", "content": "a"}]
    bodies: dict[str, dict[str, Any]] = {
        COMPLETIONS: {"prompt": "a"}, CHAT: {"messages": messages}, "/v1/embeddings": {"input": "a"},
        "/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]},
    }  # fmt: skip
    for path, body in bodies.items():
        error = error_of(server.post({**body, "model": model}, path), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "'tiny'" in error["message"].replace(repr(model)[:202], "")


def test_wrong_paths_and_methods(server: Server):
    for path in (
        "/v1",
        "/v1/models/nobody",
        "/v1/models/..",
        "/v2/completions",
        "/v1/completions/",
        "/%00",
        "/%ff",
        "/page/../etc/passwd",
        "/a" * 5000,
    ):
        error_of(server.http.get(path), 404)
    for method, path in (("GET", COMPLETIONS), ("PUT", CHAT), ("DELETE", "/v1/models"), ("POST", "/health")):
        error_of(server.http.request(method, path, headers={"Content-Type": "application/json"}), 405)


# Keys --------------------------------------------------------------------------------------------------------------------------------

KEY = "sk-right-0123456789"


@pytest.fixture(scope="module")
def locked(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(tiny, tmp_path_factory.mktemp("locked"), api_key=KEY) as server:
        yield server


WRONG_KEYS = {
    "none": None,
    "empty": b"",
    "no key": b"Bearer",
    "another scheme": b"Basic " + KEY.encode(),
    "no scheme": KEY.encode(),
    "a letter less": b"Bearer " + KEY[:-1].encode(),
    "a letter more": b"Bearer " + KEY.encode() + b"0",
    "another letter": b"Bearer " + KEY[:-1].encode() + b"0",
    "another case": b"Bearer " + KEY.upper().encode(),
    "a blank within": b"Bearer  " + KEY.encode(),
    "twice": b"Bearer " + KEY.encode() + b" " + KEY.encode(),
    "no ASCII": b"Bearer \xff\xfe",
    "UTF-8": "Bearer ключ".encode(),
    "long": b"Bearer " + b"x" * 60_000,
}


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_wrong_keys(locked: Server, name: str):
    key = WRONG_KEYS[name]
    with unharmed(locked), httpx.Client(base_url=locked.base_url, trust_env=False) as client:
        headers = {} if key is None else {"Authorization": key}
        for method, path in (("POST", COMPLETIONS), ("POST", CHAT), ("POST", "/tokenize"), ("GET", "/v1/models"), ("GET", "/metrics"),
                             ("GET", "/openapi.json"), ("GET", "/nowhere"), ("GET", "/v1/completions")):  # fmt: skip
            response = client.request(method, path, headers={"Content-Type": "application/json", **headers}, content=b"{")
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert KEY not in response.text
        assert client.get("/health", headers=headers).status_code == 200


def test_the_key_is_in_no_log(locked: Server):
    with unharmed(locked):
        locked.http.get(f"/v1/models?api_key={KEY}")
    assert KEY not in locked.log.read_text()
