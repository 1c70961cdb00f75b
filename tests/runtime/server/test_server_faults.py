"""Faults beneath the server, and how they end: group 8 of the bad inputs."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cupola.runtime.artifact.folder import Artifact
from tests.runtime.server.conftest import CONTEXT, ENDLESS
from tests.runtime.server.harness import COMPLETIONS, PATIENCE, Server, engine_of, error_of, eventually, run_server
from tests.runtime.tiny_artifact import make_artifact

LONG = {"prompt": [1, 2, 3], "max_tokens": ENDLESS, "temperature": 0, "ignore_eos": True}
SHORT = {**LONG, "max_tokens": 4000, "return_token_ids": True}


@pytest.fixture(scope="module")
def faulty(endless: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(endless, tmp_path_factory.mktemp("faulty"), "--stall-timeout", "1") as server:
        yield server


def ask(server: Server, body: dict[str, Any]) -> httpx.Response:
    """A request on a connection of its own."""
    return httpx.post(server.base_url + COMPLETIONS, json=body, timeout=PATIENCE, trust_env=False)


def read_events(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    return list(server.events(body))


def in_flight(server: Server, count: int) -> None:
    eventually(lambda: server.metrics()["num_requests_running"] == count)


def test_the_engine_is_killed(faulty: Server):
    """Clients that wait are told at once; the server says that it can't answer, and soon it can."""
    expected, engine = faulty.greedy_alone(), faulty.engine()
    with ThreadPoolExecutor(4) as pool:
        whole = [pool.submit(ask, faulty, LONG) for _ in range(2)]
        streams = [pool.submit(read_events, faulty, LONG) for _ in range(2)]
        in_flight(faulty, 4)
        engine.kill()
        for answer in whole:
            error = error_of(answer.result(), 500)
            assert error["type"] == "server_error" and "signal 9" in error["message"]
        for stream in streams:
            *events, last = stream.result()
            assert events and "signal 9" in last["error"]["message"]
    assert faulty.health()[0] == 503
    refused = faulty.post(SHORT)
    assert error_of(refused, 503)["code"] == "loading"
    assert int(refused.headers["Retry-After"]) >= 1
    eventually(lambda: faulty.health() == (200, "ready"))
    assert faulty.process.poll() is None
    assert faulty.engine() != engine
    assert faulty.greedy() == expected
    faulty.wait_idle()
    assert faulty.metrics()["engine_restarts_total"] >= 1


def test_the_engine_is_killed_while_it_loads(faulty: Server):
    """Again and again: there is no state in which it may not die but the first."""
    expected = faulty.greedy_alone()
    faulty.engine().kill()
    eventually(lambda: faulty.health()[0] == 503)
    eventually(lambda: faulty.health() == (200, "ready"))
    assert faulty.greedy() == expected


def test_the_engine_stands_still(faulty: Server):
    """With work, it is noticed; when it goes on, so is that, and no answer has changed."""
    whole = ask(faulty, SHORT).json()["choices"]
    engine = faulty.engine()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, faulty, SHORT)
        in_flight(faulty, 1)
        engine.suspend()
        try:
            eventually(lambda: faulty.health() == (503, "stalled"))
            assert not answer.done()
        finally:
            engine.resume()
        assert answer.result().json()["choices"] == whole
    assert faulty.health() == (200, "ready")
    faulty.wait_idle()


def test_an_idle_engine_is_healthy(faulty: Server):
    faulty.wait_idle()
    time.sleep(1.5)  # more than the time after which an engine with work would be called stalled
    assert faulty.health() == (200, "ready")


def test_an_idle_engine_stands_still(faulty: Server):
    """Nobody asks it anything: that it would not answer is noticed nevertheless, and so is that it does again."""
    faulty.wait_idle()
    engine = faulty.engine()
    engine.suspend()
    try:
        eventually(lambda: faulty.health() == (503, "stalled"))
    finally:
        engine.resume()
    eventually(lambda: faulty.health() == (200, "ready"))


def test_an_artifact_that_is_replaced(copy_of_tiny: Path, tmp_path: Path):
    """The server goes on with what it loaded, and says so; the other one's engine never answers behind this one's tokenizer."""
    other = make_artifact(tmp_path / "other", seed=1, context=CONTEXT).path
    with run_server(copy_of_tiny, tmp_path) as server:
        expected, engine = server.greedy_alone(), server.engine()
        copy_of_tiny.rename(tmp_path / "old")
        other.rename(copy_of_tiny)
        eventually(lambda: any("replaced" in line["message"] for line in server.lines()))
        assert server.greedy() == expected
        engine.kill()
        assert server.process.wait(PATIENCE) == 2
        assert "replaced by another one" in server.log.read_text().splitlines()[-1]


def test_weights_that_are_written_over(copy_of_tiny: Path, tmp_path: Path):
    with run_server(copy_of_tiny, tmp_path) as server:
        with next(copy_of_tiny.glob("*.safetensors")).open("r+b") as file:
            file.seek(1000)
            file.write(b"other")
        assert server.process.wait(PATIENCE) == 2
        assert "written over" in server.log.read_text().splitlines()[-1]


def test_the_server_is_killed(endless: Path, tmp_path: Path):
    """The engine and the process of the chat templates end with it."""
    with run_server(endless, tmp_path) as server:
        with server.start_request(LONG):
            in_flight(server, 1)
            children = psutil.Process(server.process.pid).children(recursive=True)
            assert len(children) == 2
            server.stop(signal.SIGKILL)
            _, alive = psutil.wait_procs(children, PATIENCE)
            assert not alive


def test_what_a_killed_server_cached_on_disk_is_there_when_it_starts_again(endless: Path, tmp_path: Path):
    question, options = {**SHORT, "prompt": [7, 11, 13] * 30, "max_tokens": 40}, ("--cache-folder", str(tmp_path / "cache"))
    size = Artifact.open(endless).manifest.kv.block_size
    num_blocks = (90 + 39) // size  # nobody reads the K/V of the last token
    with run_server(endless, tmp_path, *options) as server:
        answer = server.complete(**question)["choices"][0]["token_ids"]
        written = tmp_path / "cache"
        eventually(lambda: len([path for path in written.rglob("*") if path.is_file() and not path.suffix]) == num_blocks)
        server.engine().kill()
        server.stop(signal.SIGKILL)
    with run_server(endless, tmp_path, *options) as server:
        next_turn = {**question, "prompt": [*question["prompt"], *answer, 5, 6]}
        again = server.complete(**next_turn)["choices"][0]["token_ids"]
        figures = server.metrics()
        assert figures["prefix_cache_hits_total"] == num_blocks * size and figures["num_loaded_total"] == num_blocks
    with run_server(endless, tmp_path) as server:
        assert server.complete(**next_turn)["choices"][0]["token_ids"] == again


def test_an_engine_that_can_not_come_back(endless: Path, tmp_path: Path):
    """It would only fail again: the server ends, and says why."""
    folder = tmp_path / "artifact"
    shutil.copytree(endless, folder)
    with run_server(folder, tmp_path) as server:
        engine = server.engine()
        next(folder.glob("*.safetensors")).unlink()
        engine.kill()
        assert server.process.wait(PATIENCE) == 2
        assert "safetensors" in server.log.read_text().splitlines()[-1]


# The end ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_finish(tiny: Path, tmp_path: Path, number: signal.Signals):
    with run_server(tiny, tmp_path, "--shutdown-timeout", "600") as server, ThreadPoolExecutor(3) as pool:
        expected = ask(server, SHORT).json()["choices"]
        children = psutil.Process(server.process.pid).children(recursive=True)
        whole: Future[httpx.Response] = pool.submit(ask, server, SHORT)
        stream = pool.submit(read_events, server, SHORT)
        in_flight(server, 2)
        server.process.send_signal(number)
        eventually(lambda: refuses(server))
        assert server.process.poll() is None
        assert whole.result().json()["choices"] == expected
        assert "".join(event["choices"][0]["text"] for event in stream.result()) == expected[0]["text"]
        assert server.process.wait(PATIENCE) == 0
        assert not psutil.wait_procs(children, PATIENCE)[1]
        assert server.errors() == []


def refuses(server: Server) -> bool:
    """True if it takes no request: by its answer, by no longer listening, or by a reset of what waited to be accepted when it ceased to."""
    try:
        return ask(server, {"prompt": "a", "max_tokens": 1}).status_code == 503
    except httpx.NetworkError:
        return True


@pytest.mark.parametrize("how", ["the time is over", "told twice"])
def test_requests_that_do_not_finish(endless: Path, tmp_path: Path, how: str):
    """They are told so, whole or streamed; nobody keeps the server from ending, not even who reads nothing."""
    options = ["--shutdown-timeout", "0.5"] if how == "the time is over" else ["--shutdown-timeout", "600"]
    with run_server(endless, tmp_path, *options) as server, ThreadPoolExecutor(3) as pool:
        children = psutil.Process(server.process.pid).children(recursive=True)
        whole = pool.submit(ask, server, LONG)
        stream = pool.submit(read_events, server, LONG)
        with server.connect() as half, server.start_request({**LONG, "stream": True}):
            half.sendall(f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{{".encode())
            in_flight(server, 3)
            server.process.send_signal(signal.SIGTERM)
            if how == "told twice":
                eventually(lambda: refuses(server))
                assert not whole.done() and server.process.poll() is None
                server.process.send_signal(signal.SIGTERM)
            assert error_of(whole.result(), 503)["code"] == "shutting_down"
            assert stream.result()[-1]["error"]["code"] == "shutting_down"
            assert server.process.wait(PATIENCE) == 0
        assert not psutil.wait_procs(children, PATIENCE)[1]
        assert server.errors() == []


def test_told_to_end_while_it_loads(endless: Path, tmp_path: Path):
    with run_server(endless, tmp_path, ready=False) as server:
        assert server.stop() == 0
        assert server.errors() == []


# The log ------------------------------------------------------------------------------------------------------------------------------

LOGS = {"a full disk": "2> /dev/full", "closed": "2>&-", "a pipe that nobody reads": "2> >(exit)"}


@pytest.mark.parametrize("log", LOGS)
def test_a_log_that_can_not_be_written(tiny: Path, log: str):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f'exec "{sys.executable}" -m cupola serve "{tiny}" --port {port} {LOGS[log]}'
    with subprocess.Popen(["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:
                eventually(lambda: answers(client))
                for _ in range(3):
                    assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 5}).status_code == 200
                    error_of(client.post(COMPLETIONS, json={}))
                engine_of(process.pid).kill()
                eventually(lambda: client.get("/health").status_code == 503)
                eventually(lambda: answers(client))
                assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 5}).status_code == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:
        return False
