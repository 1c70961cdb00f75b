"""`cupola bench-serve`: whole runs against a server that fails on purpose, and bad options."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cupola.compiler.cli.app import run
from cupola.runtime.load_generator.words import WORDS
from tests.runtime.openai_server import FakeServer, Plan, every, texts

Capture = pytest.CaptureFixture[str]
Bench = Callable[..., dict]


@pytest.fixture
def bench(capsys: Capture) -> Bench:
    """Runs the command against a server and returns its JSON."""

    def run_it(server: FakeServer, *options: str) -> dict:
        with server.running():
            assert run(["bench-serve", "--base-url", server.url, "--json", *options]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return run_it


SMALL = ("--num-prompts", "12", "--input-len", "9", "--output-len", "4")


def test_completions_get_ids_of_the_wanted_number(bench: Bench) -> None:
    server = FakeServer()
    found = bench(server, *SMALL, "--max-concurrency", "5")
    assert (found["completed"], found["failed"], found["total_input_tokens"], found["total_output_tokens"]) == (12, 0, 108, 48)
    assert (found["total_cached_tokens"], found["model_id"], found["failures"], found["notes"]) == (24, "org/fake", {}, [])
    tried, warmed, *measured = server.bodies
    known = {100 + sum(map(ord, word)) for word in WORDS}
    assert len(measured) == 12 and all(len(body["prompt"]) == 9 and set(body["prompt"]) <= known for body in server.bodies)
    assert (tried["max_tokens"], warmed["max_tokens"], measured[0]["max_tokens"]) == (1, 4, 4)
    assert {(b["model"], b["temperature"], b["stream"], b["ignore_eos"]) for b in measured} == {("org/fake", 0.0, True, True)}
    assert 1 < server.most_in_flight <= 5 and server.num_connections <= 6
    assert 1 < found["max_concurrent_requests"] <= 5


def test_chats_get_texts(bench: Bench) -> None:
    server = FakeServer()
    found = bench(server, *SMALL, "--backend", "openai-chat", "--extra-body", '{"top_p": 0.5}', "--no-ignore-eos", "--temperature", "0.7")
    assert (found["completed"], found["total_input_tokens"], found["total_output_tokens"], found["backend"]) == (12, 108, 48, "openai-chat")
    assert {len(text.split()) for text in texts(server.bodies)} == {9}
    assert {(b["top_p"], b["temperature"], "ignore_eos" in b, b["max_completion_tokens"]) for b in server.bodies[2:]} == {
        (0.5, 0.7, False, 4)
    }
    assert set(server.paths) == {"/health", "/v1/models", "/tokenize", "/v1/chat/completions"}


@pytest.mark.parametrize(
    ("server", "note", "kind"),
    [
        (FakeServer(takes_ids=False), "takes no token ids", str),
        (FakeServer(tokenizes=None), "has no /tokenize", str),
        (FakeServer(num_cached=3), "36 of 108 input tokens were in the server's prefix cache", list),
        (FakeServer(tokenizes="llama"), None, list),
        (FakeServer(has_usage=False), "12 answers came without usage", list),
        (FakeServer(newline="\r\n", piece_bytes=7), None, list),
        (FakeServer(plan=lambda number: Plan(closes=True)), None, list),
        (FakeServer(polls_before_ready=1), None, list),
        (FakeServer(polls_before_ready=1, loading_path="/v1/models"), None, list),
    ],
    ids=["no ids", "no tokenize", "cached", "llama-server", "no usage", "small pieces", "closes", "loading", "loading without health"],
)
def test_servers_differ(bench: Bench, server: FakeServer, note: str | None, kind: type) -> None:
    found = bench(server, *SMALL)
    assert (found["completed"], found["total_input_tokens"], found["total_output_tokens"]) == (12, 108, 48)
    assert isinstance(server.bodies[-1]["prompt"], kind)
    assert [note in shown for shown in found["notes"]] == ([] if note is None else [True])


def test_failures_are_left_out_and_their_reasons_counted(bench: Bench) -> None:
    plans = {
        0: Plan(), 1: Plan(), 3: Plan(500, "engine\nfailed"), 4: Plan(500, "engine\nfailed"), 6: Plan(429, "queue full"),
        7: Plan(breaks_after=2), 8: Plan(error_after=2), 9: Plan(breaks_after=0),
    }  # fmt: skip
    server = FakeServer(plan=lambda number: plans.get(number, Plan()))
    found = bench(server, *SMALL, "--save-detailed", "--max-concurrency", "1")
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (6, 6, 24)
    assert found["failures"] == {
        "HTTP 500: engine failed": 2, "HTTP 429: queue full": 1, "the server closed the connection": 2,
        "error in the stream: out of blocks": 1,
    }  # fmt: skip
    assert [bool(error) for error in found["errors"]] == [number in plans for number in range(2, 14)]
    assert [n for n, error in zip(found["output_lens"], found["errors"], strict=True) if error] == [0] * 6
    assert found["generated_texts"][0] == "0 1 2 3 "


def test_a_request_without_end_has_failed(bench: Bench) -> None:
    server = FakeServer(plan=every(6, Plan(never_ends=True)))
    found = bench(server, *SMALL, "--request-timeout-sec", "1", "--max-concurrency", "4")
    assert found["failures"] == {"no end after 1 s": 2} and found["completed"] == 10


def test_an_idle_connection_that_the_server_closed_is_opened_anew(bench: Bench) -> None:
    class Forgetful(FakeServer):
        async def answer(self, path: str, headers: dict[str, str], body: dict, writer: asyncio.StreamWriter) -> None:
            if path == "/v1/completions" and getattr(writer, "used", False):
                return writer.close()
            await super().answer(path, headers, body, writer)
            writer.used = True

    server = Forgetful()
    assert bench(server, *SMALL, "--max-concurrency", "1")["completed"] == 12 and server.num_connections >= 14


def test_it_does_without_uvloop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert bench(FakeServer(), *SMALL)["completed"] == 12


def test_a_run_again_sends_the_same(bench: Bench) -> None:
    options = (*SMALL, "--random-range-ratio", "0.5", "--max-concurrency", "1", "--seed", "7")
    first, second = FakeServer(), FakeServer()
    bench(first, *options), bench(second, *options)
    assert first.bodies == second.bodies and len({len(body["prompt"]) for body in first.bodies}) > 1


def test_the_rate_is_kept_and_other_figures_are_vllms(bench: Bench) -> None:
    found = bench(
        FakeServer(), *SMALL, "--request-rate", "200", "--goodput", "ttft:60000", "tpot:60000", "--goodput=e2el:60000",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99.9", "--save-detailed",
    )  # fmt: skip
    assert (found["request_rate"], found["burstiness"], found["max_concurrency"]) == (200, 1.0, None)
    assert found["duration"] >= 12 / 200 and found["request_goodput"] == found["request_throughput"] == 12 / found["duration"]
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert {f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p50", "p99.9")} <= set(found)
    assert found["p50_ttft_ms"] == pytest.approx(1000 * float(np.median(found["ttfts"])))
    assert found["mean_itl_ms"] == pytest.approx(1000 * np.mean([gap for gaps in found["itls"] for gap in gaps]))
    assert {len(gaps) for gaps in found["itls"]} == {3} and found["input_lens"] == [9] * 12 and found["output_lens"] == [4] * 12
    assert found["client_cpu_us_per_chunk"] == pytest.approx(1e6 * found["client_cpu_seconds"] / 48)


def test_scripts_for_vllms_results_find_their_keys(bench: Bench) -> None:
    named = """date endpoint_type backend label model_id tokenizer_id num_prompts request_rate burstiness max_concurrency duration completed
        failed total_input_tokens total_output_tokens request_throughput request_goodput output_throughput total_token_throughput
        max_output_tokens_per_s max_concurrent_requests mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms mean_tpot_ms
        median_tpot_ms std_tpot_ms p99_tpot_ms mean_itl_ms median_itl_ms std_itl_ms p99_itl_ms"""
    lists = {"input_lens", "output_lens", "ttfts", "itls", "generated_texts", "errors"}
    plain, detailed = bench(FakeServer(), *SMALL), bench(FakeServer(), *SMALL, "--save-detailed")
    assert set(named.split()) <= set(plain) and not lists & set(plain)
    assert lists <= set(detailed) and {len(detailed[name]) for name in lists} == {12}
    assert plain["request_rate"] == "inf" and plain["request_goodput"] is None


def test_results_are_shown_saved_and_drawn(tmp_path: Path, capsys: Capture) -> None:
    server = FakeServer(plan=every(4, Plan(500, "engine failed")))
    options = (*SMALL, "--result-dir", str(tmp_path / "new"), "--save-result", "--max-concurrency", "4", "--plot", str(tmp_path / "a.png"))
    with server.running():
        assert run(["bench-serve", "--base-url", f"{server.url}/v1", *options]) == 0
        server.bodies.clear()
        assert run(["bench-serve", "--base-url", server.url, *options[:-2], "--result-filename", "b.json", "--save-detailed"]) == 0
    shown = capsys.readouterr().out
    for label in ("Successful requests:", "Failed requests:", "Output token throughput (tok/s):", "Mean TTFT (ms):", "P99 ITL (ms):"):
        assert label in shown
    assert "3 × HTTP 500: engine failed" in shown and len(set(map(len, shown.splitlines()[:10]))) <= 3
    [named] = [file for file in (tmp_path / "new").iterdir() if file.name != "b.json"]
    assert named.name.startswith("openai-infqps-concurrency4-fake-") and named.suffix == ".json"
    assert json.loads(named.read_text())["completed"] == 9 and "ttfts" not in json.loads(named.read_text())
    assert len(json.loads((tmp_path / "new" / "b.json").read_text())["ttfts"]) == 12
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "a.png").stat().st_size > 10_000


def test_a_key_is_sent_and_a_wrong_one_refused(bench: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(FakeServer(key="sesame"), *SMALL, "--api-key", "sesame")["completed"] == 12
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    assert bench(FakeServer(key="sesame"), *SMALL)["completed"] == 12
    with (server := FakeServer(key="sesam")).running():
        assert run(["bench-serve", "--base-url", server.url]) == 2
    assert "api-key: is refused: wrong key (set OPENAI_API_KEY" in capsys.readouterr().err


def conversation(*values: object) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": value} for value in values]}


def test_sharegpt_whole(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    too_long = [conversation("a " * 3000, "as " * 5) for _ in range(5)]  # which the server refuses to tokenize
    file.write_text(json.dumps([*too_long, *(conversation(f"say it {n} times please", "as " * (4 + n)) for n in range(5))]))
    found = bench(server := FakeServer(), "--dataset-name", "sharegpt", "--dataset-path", str(file), "--num-prompts", "5")
    assert (found["completed"], found["total_output_tokens"]) == (5, 4 + 5 + 6 + 7 + 8)
    assert all(isinstance(body["prompt"], str) and "ignore_eos" not in body for body in server.bodies[2:])


def line_of_error(capsys: Capture) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = [line for line in shown.err.splitlines() if not line.startswith("cupola: ")]
    return line


@pytest.mark.parametrize(
    ("plan", "code", "expected"),
    [
        (Plan(404, "no such route"), 2, "does not take such a request: HTTP 404: no such route"),
        (Plan(400, "too long"), 2, "does not take such a request: HTTP 400: too long"),
        (Plan(500, "broken"), 1, "does not take such a request: HTTP 500: broken"),
        (Plan(breaks_after=0), 1, "does not take such a request: the server closed the connection"),
    ],
)
def test_what_fails_for_all_is_said_at_once(plan: Plan, code: int, expected: str, capsys: Capture) -> None:
    with (server := FakeServer(plan=lambda number: plan)).running():
        assert run(["bench-serve", "--base-url", server.url, *SMALL]) == code
    assert expected in line_of_error(capsys) and len(server.bodies) <= 2


def test_a_wrong_model_is_said_at_once(capsys: Capture) -> None:
    with (server := FakeServer()).running():
        assert run(["bench-serve", "--base-url", server.url, "--model", "gpt-9"]) == 2
    assert "HTTP 404: The model `gpt-9` does not exist." in line_of_error(capsys)


def test_when_no_request_succeeds_the_code_is_1(capsys: Capture) -> None:
    with (server := FakeServer(plan=every(1, Plan(500, "broken")))).running():
        assert run(["bench-serve", "--base-url", server.url, *SMALL]) == 1
    shown = capsys.readouterr()
    assert "12 × HTTP 500: broken" in shown.out and "error: no request succeeded" in shown.err


def test_a_server_that_is_not_there_is_waited_for_and_named(capsys: Capture) -> None:
    with (server := FakeServer()).running():
        url = server.url
    assert run(["bench-serve", "--base-url", url, "--ready-check-timeout-sec", "0.1"]) == 1
    assert f"{url}: no server is ready after 0.1 s: connection refused" in line_of_error(capsys)
    with (server := FakeServer(polls_before_ready=99)).running():
        assert run(["bench-serve", "--base-url", server.url, "--ready-check-timeout-sec", "0.1"]) == 1
    assert "HTTP 503: loading" in line_of_error(capsys)


# Bad options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--base-url", "127.0.0.1:8000"], "base-url: '127.0.0.1:8000' is not the address of a server"),
        (["--base-url", "http://host:99999"], "base-url: "),
        (["--base-url", "http://a b"], "base-url: "),
        (["--host", "a\r\nb"], "base-url: "),
        (["--port", "x"], "--port"),
        (["--endpoint", "/v1/embeddings"], "endpoint: '/v1/embeddings' is not the path of completions"),
        (["--endpoint", "v1/completions"], "endpoint: "),
        (["--backend", "tgi"], "backend: 'tgi' is unknown (choose from openai, vllm, openai-chat)"),
        (["--api-key", "a\nb"], "api-key: has characters that no header may hold"),
        (["--num-prompts", "0"], "num-prompts: is 0, not from 1"),
        (["--input-len", "0"], "input-len: is 0"),
        (["--output-len", "-1"], "output-len: is -1"),
        (["--random-range-ratio", "1"], "random-range-ratio: is 1.0, not from 0 to below 1"),
        (["--random-range-ratio", "nan"], "random-range-ratio: is nan"),
        (["--request-rate", "0"], "request-rate: is 0.0, not above 0"),
        (["--request-rate", "nan"], "request-rate: is nan"),
        (["--burstiness", "-1"], "burstiness: is -1.0"),
        (["--max-concurrency", "0"], "max-concurrency: is 0"),
        (["--num-warmups", "-1"], "num-warmups: is -1"),
        (["--temperature", "nan"], "temperature: is nan"),
        (["--seed", "-1"], "seed: is -1"),
        (["--dataset-name", "sonnet"], "dataset-name: 'sonnet' is unknown (choose from random, sharegpt, prefix_repetition)"),
        (["--dataset-name", "sharegpt"], "dataset-path: is missing"),
        (["--dataset-path", "x.json"], "dataset-path: means nothing to the dataset random"),
        (["--dataset-name", "prefix_repetition", "--input-len", "3"], "input-len: means nothing to the dataset prefix_repetition"),
        (["--suffix-len", "3"], "suffix-len: means nothing to the dataset random"),
        (["--goodput", "ttft"], "goodput: 'ttft' is no objective"),
        (["--goodput", "itl:5"], "goodput: 'itl:5.0' is no objective"),
        (["--goodput", "ttft:5", "tpot:x"], "goodput: 'tpot:x' is no objective"),
        (["--goodput", "ttft:nan"], "goodput: 'ttft:nan'"),
        (["http://host"], "'http://host' is not an option"),
        (["--percentile-metrics", "ttft,foo"], "percentile-metrics: 'ttft,foo' holds an unknown metric"),
        (["--metric-percentiles", "50,x"], "metric-percentiles: '50,x' are no numbers"),
        (["--metric-percentiles", "101"], "metric-percentiles: "),
        (["--extra-body", "[1]"], "extra-body: '[1]' is no JSON object"),
        (["--extra-body", "{"], "extra-body: '{' is no JSON object"),
        (["--plot", "load.txt"], "plot: 'load.txt' is no picture"),
        (["--plot", "missing/load.png"], "missing/load.png: plot: the folder is not there"),
        (["--save-result", "--result-dir", __file__], "result-dir: can't be made"),
        (["--frobnicate"], "--frobnicate"),
    ],
)  # fmt: skip
def test_bad_options_give_one_line_and_code_2(options: list[str], expected: str, capsys: Capture) -> None:
    assert run(["bench-serve", *options]) == 2
    line = line_of_error(capsys)
    assert line.startswith("error: ") and expected in line


def test_a_bad_file_is_found_when_it_is_read(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("[" * 100_000)
    with (server := FakeServer()).running():
        for name, expected in (("no.json", "is not JSON"), ("missing.json", "can't be read: No such file")):
            file = str(tmp_path / name)
            assert run(["bench-serve", "--base-url", server.url, "--dataset-name", "sharegpt", "--dataset-path", file]) == 2
            assert f"{file}: dataset-path: {expected}" in line_of_error(capsys)


def test_a_missing_library_is_named() -> None:
    code = """if 1:
        import sys
        sys.modules[sys.argv[1]] = None
        from cupola.compiler.cli.app import run
        sys.exit(run(["bench-serve", "--plot", "x.png", "--ready-check-timeout-sec", "0.1", "--port", "9"]))"""
    for library in ("httptools", "msgspec", "matplotlib"):
        done = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and library in done.stderr and "pip install 'cupola[bench]'" in done.stderr, done.stderr
