"""`cupola bench-serve`: its figures by hand, its prompts, and whole runs against a server that fails on purpose."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.compiler.cli.app import run
from cupola.runtime.load_generator.answer import Answer
from cupola.runtime.load_generator.dataset import Prompt, make_prompts, make_warm_up, read_sharegpt
from cupola.runtime.load_generator.load_test import LoadTest
from cupola.runtime.load_generator.metrics import concurrency, latency, summarize, tokens_per_second
from cupola.runtime.load_generator.record import RequestRecord
from cupola.runtime.load_generator.traffic import arrival_times_s, send_all
from cupola.runtime.load_generator.words import WORDS, Vocabulary, learn_words
from tests.runtime.openai_server import FakeServer, Plan, every, texts

Capture = pytest.CaptureFixture[str]
IDS = Vocabulary(WORDS, tuple(range(len(WORDS))), is_exact=True)


# The figures

# Sent at 10: chunks at 10.5, 10.6, 10.8, of 2, 1 and 1 tokens. Sent at 10.5: one token at 11.5. The third failed.
RECORDS = [
    RequestRecord(10.0, 10.8, (10.5, 10.6, 10.8), 7, 4, 4),
    RequestRecord(10.5, 11.5, (11.5,), 5, 1, 0),
    RequestRecord(10.2, 10.3, (10.25,), 5, 9, None, error="HTTP 500: no"),
]


def test_the_definitions_by_hand() -> None:
    found = summarize(RECORDS, 2.0, [50, 90], {"ttft": 600, "tpot": 100.1})
    assert (found.num_completed, found.num_failed) == (2, 1)
    assert (found.num_input_tokens, found.num_output_tokens, found.num_cached_tokens) == (12, 5, 4)
    assert (found.request_throughput, found.output_throughput, found.total_token_throughput) == (1.0, 2.5, 8.5)
    assert found.request_goodput == 0.5
    assert found.latencies["ttft"].mean_ms == pytest.approx(750) and found.latencies["ttft"].std_ms == pytest.approx(250)
    assert found.latencies["ttft"].percentiles_ms == pytest.approx({50: 750, 90: 950})
    assert found.latencies["tpot"].mean_ms == pytest.approx(300 / 3)  # (0.8 - 0.5) / (4 - 1); one token has none
    assert found.latencies["tpot"].std_ms == 0
    assert found.latencies["itl"].mean_ms == pytest.approx(150)  # 100 and 200
    assert found.latencies["e2el"].median_ms == pytest.approx(900)  # 800 and 1000


def test_load_over_time_by_hand() -> None:
    assert tokens_per_second(RECORDS[:2]) == pytest.approx([4, 1])
    times, flights = concurrency(RECORDS[:2])
    assert times == pytest.approx([0, 0.5, 0.8, 1.5]) and flights == [1, 2, 1, 0]
    assert summarize(RECORDS, 2.0, [99], None).max_concurrent_requests == 2
    back_to_back = [RequestRecord(0, 1, (1,)), RequestRecord(1, 2, (2,))]
    assert concurrency(back_to_back)[1] == [1, 0, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 5, 101])
def test_percentiles_are_numpys(size: int) -> None:
    samples = np.random.default_rng(size).exponential(size=size)
    found = latency(samples.tolist(), [0, 25, 50, 99.9, 100])
    assert found.percentiles_ms == pytest.approx({p: 1000 * np.percentile(samples, p) for p in (0, 25, 50, 99.9, 100)})
    assert (found.mean_ms, found.median_ms) == pytest.approx((1000 * samples.mean(), 1000 * np.median(samples)))
    assert found.std_ms == pytest.approx(1000 * samples.std())


@pytest.mark.parametrize(
    ("objectives", "good"),
    [
        ({"ttft": 500}, 1), ({"ttft": 499}, 0), ({"ttft": 1000}, 2), ({"tpot": 0}, 1), ({"tpot": 100.01}, 2),
        ({"e2el": 801}, 1), ({"e2el": 1001, "ttft": 600}, 1), ({"ttft": 1, "tpot": 1000}, 0),
    ],
)  # fmt: skip
def test_goodput_counts_those_that_meet_every_objective(objectives: dict[str, float], good: int) -> None:
    assert summarize(RECORDS, 4.0, [99], objectives).request_goodput == pytest.approx(good / 4)


def test_without_a_success_all_figures_are_zero() -> None:
    found = summarize(RECORDS[2:], 2.0, [99], {"ttft": 1e9})
    assert (found.num_completed, found.num_failed, found.request_goodput, found.output_throughput) == (0, 1, 0, 0)
    assert found.latencies["ttft"].percentiles_ms == {99: 0} and found.num_cached_tokens is None
    assert (found.max_output_tokens_per_s, found.max_concurrent_requests) == (0, 0)


# One answer


def fed(*pieces: tuple[float, str]) -> RequestRecord:
    answer = Answer(1.0)
    for now_s, text in pieces:
        answer.feed(text.encode(), now_s)
    return answer.record(7)


def event(**fields: object) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def text(piece: str, reason: str | None = None) -> str:
    return event(choices=[{"text": piece, "finish_reason": reason}])


def delta(reason: str | None = None, **fields: object) -> str:
    return event(choices=[{"delta": fields, "finish_reason": reason}])


def test_chunks_are_timed_and_usage_is_counted() -> None:
    usage = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}})
    record = fed((2.0, text("a")), (2.5, text("bc")), (3.5, text("d", "length")), (9.0, usage + "data: [DONE]\n\n"))
    assert (record.ttft_s, record.itls_s, record.e2el_s, record.tpot_s) == (1.0, [0.5, 1.0], 2.5, 1.5 / 4)
    assert (record.num_input_tokens, record.num_output_tokens, record.num_cached_tokens) == (3, 5, 2)
    assert (record.text, record.error, record.is_counted) == ("abcd", None, True)


def test_pieces_may_end_anywhere_and_lines_as_they_like() -> None:
    whole = ": ping\r\nevent: x\r\n" + text("é", None).replace("\n", "\r\n") + text("b", "stop") + "data:[DONE]\n\n"
    answer = Answer(0.0)
    for place, byte in enumerate(whole.encode()):
        answer.feed(bytes([byte]), float(place))
    record = answer.record(7)
    assert (record.text, record.error, len(record.chunk_times_s), record.num_input_tokens) == ("éb", None, 2, 7)
    first_end = len((": ping\r\nevent: x\r\n" + text("é").rstrip("\n")).encode()) + 1
    assert record.chunk_times_s[0] == first_end


def test_a_role_alone_is_no_token_and_neither_is_a_reason_alone() -> None:
    record = fed(
        (2.0, delta(role="assistant", content="")), (3.0, delta(content="a")), (4.0, delta(reasoning_content="b")),
        (5.0, delta(tool_calls=[{"index": 0}])), (6.0, delta("stop")),
    )  # fmt: skip
    assert list(record.chunk_times_s) == [3.0, 4.0, 5.0] and record.end_s == 6.0 and record.error is None


def test_a_token_without_text_is_a_token() -> None:
    assert list(fed((2.0, text("")), (3.0, text("a")), (4.0, text("", "stop"))).chunk_times_s) == [2.0, 3.0]
    only_end = fed((2.0, text("", "stop")))
    assert list(only_end.chunk_times_s) == [2.0] and only_end.error is None


def test_without_usage_chunks_are_counted() -> None:
    record = fed((2.0, text("a")), (3.0, text("b", "stop")))
    assert (record.num_input_tokens, record.num_output_tokens, record.num_cached_tokens, record.is_counted) == (7, 2, None, False)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (text("a"), "the answer broke off"),
        ("", "the answer broke off"),
        ("data: [DONE]\n\n", "the answer broke off"),
        (text("a") + event(error={"message": "out of\nblocks"}), "error in the stream: out of blocks"),
        (text("a") + event(error="oh"), "error in the stream: oh"),
        (text("a") + "data: {\n\n" + text("b", "stop"), "a chunk can't be read: "),
        (event(choices=3), "a chunk can't be read: "),
    ],
)
def test_what_breaks_an_answer(stream: str, reason: str) -> None:
    error = fed((2.0, stream)).error
    assert error is not None and error.startswith(reason)


def test_done_ends_an_answer_too_and_so_does_the_last_line_without_an_end() -> None:
    assert fed((2.0, text("a") + "data: [DONE]\n\n")).error is None
    assert fed((2.0, text("a", "stop").rstrip("\n"))).error is None


# The prompts


def make(**fields: object) -> list[Prompt]:
    return make_prompts(LoadTest(**{"num_prompts": 20, **fields}), IDS, as_ids=True)


def test_random_prompts_have_their_lengths_and_are_those_of_the_seed() -> None:
    prompts = make(input_len=12, output_len=3)
    assert {(len(prompt.content), prompt.num_tokens, prompt.output_len) for prompt in prompts} == {(12, 12, 3)}
    assert make(input_len=12, output_len=3) == prompts and make(input_len=12, output_len=3, seed=1) != prompts
    assert len({tuple(prompt.content) for prompt in prompts}) == 20
    assert (prompts[0].num_tokens, make()[0].num_tokens, make()[0].output_len) == (12, 1024, 128)


def test_lengths_vary_evenly_between_their_bounds() -> None:
    prompts = make(num_prompts=2000, input_len=10, output_len=4, random_range_ratio=0.5)
    counts = Counter(prompt.num_tokens for prompt in prompts)
    assert set(counts) == set(range(5, 16)) and min(counts.values()) > 2000 / 11 * 0.7
    assert {prompt.output_len for prompt in prompts} == {2, 3, 4, 5, 6}
    assert min(prompt.num_tokens for prompt in make(num_prompts=200, input_len=1, output_len=1, random_range_ratio=0.9)) == 1


def test_a_prefix_may_stand_before_all() -> None:
    prompts = make(input_len=4, prefix_len=6)
    assert {tuple(prompt.content[:6]) for prompt in prompts} == {tuple(prompts[0].content[:6])}
    assert {len(prompt.content) for prompt in prompts} == {10} and len({tuple(prompt.content[6:]) for prompt in prompts}) == 20


def test_prefixes_are_shared_evenly_and_shuffled() -> None:
    options: dict[str, object] = {"dataset_name": "prefix_repetition", "prefix_len": 8, "suffix_len": 5, "num_prefixes": 3, "output_len": 2}
    prompts = make(num_prompts=11, **options)
    prefixes = [tuple(prompt.content[:8]) for prompt in prompts]
    assert sorted(Counter(prefixes).values()) == [3, 4, 4] and prefixes != sorted(prefixes)
    assert {(len(prompt.content), prompt.output_len) for prompt in prompts} == {(13, 2)}
    assert len({tuple(prompt.content[8:]) for prompt in prompts}) == 11
    assert make(num_prompts=11, **options) == prompts


def test_texts_and_ids_are_of_the_same_words() -> None:
    test = LoadTest(num_prompts=5, input_len=30)
    as_ids, as_texts = make_prompts(test, IDS, as_ids=True), make_prompts(test, IDS, as_ids=False)
    assert [[WORDS.index(word) for word in prompt.content.split()] for prompt in as_texts] == [prompt.content for prompt in as_ids]
    assert all(prompt.content.startswith(" ") for prompt in as_texts)


def test_a_warm_up_is_as_long_as_a_measured_prompt_and_no_other() -> None:
    test = LoadTest(num_prompts=3, input_len=30, output_len=4)
    measured = make_prompts(test, IDS, as_ids=True)
    ups = [make_warm_up(test, measured[0], number, IDS, as_ids=True) for number in range(3)]
    assert {(len(up.content), up.output_len) for up in ups} == {(30, 4)}
    assert len({tuple(prompt.content[:8]) for prompt in [*measured, *ups]}) == 6


def test_words_are_those_that_the_server_takes_as_one_token() -> None:
    asked = []

    async def tokenize(text: str) -> list[int]:
        asked.append(text)
        return [sum(map(ord, word)) for word in text.split() for _ in range(1 + ("e" in word))]

    found = asyncio.run(learn_words(tokenize))
    assert found.is_exact and found.words == tuple(word for word in WORDS if "e" not in word)
    assert found.ids == tuple(sum(map(ord, word)) for word in found.words)
    assert all(text.startswith(" ") for text in asked)


def test_words_of_many_tokens_each_still_give_ids() -> None:
    async def tokenize(text: str) -> list[int]:
        return list(text.encode())

    found = asyncio.run(learn_words(tokenize))
    assert not found.is_exact and found.words == WORDS and found.ids is not None
    assert len(found.ids) == len(WORDS) and set(found.ids) <= set((" " + " ".join(WORDS)).encode())


def conversation(*values: object) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": value} for value in values]}


def sharegpt(tmp_path: Path, entries: object, **fields: object) -> list[Prompt]:
    async def tokenize(text: str) -> list[int]:
        return [0] * len(text.split())

    file = tmp_path / "talks.json"
    file.write_text(json.dumps(entries))
    return asyncio.run(read_sharegpt(LoadTest(dataset_name="sharegpt", dataset_path=file, **fields), tokenize))


def test_sharegpt_takes_first_turns_that_are_neither_short_nor_long(tmp_path: Path) -> None:
    good = [conversation(f"say it {n} times please", "as " * (4 + n), "more") for n in range(6)]
    bad = [
        conversation("too short", "a b c d"), conversation("a b c d", "no"), conversation("a " * 1025, "a b c d"), {"id": 3}, [],
        conversation("a b c d", "a " * 2046), conversation("x" * 40_000, "a b c d"), conversation("alone a b c"), conversation(3, 4),
    ]  # fmt: skip
    prompts = sharegpt(tmp_path, [*bad, *good], num_prompts=6)
    assert {(p.content, p.num_tokens, p.output_len) for p in prompts} == {(f"say it {n} times please", 5, 4 + n) for n in range(6)}
    assert sharegpt(tmp_path, [*bad, *good], num_prompts=6) == prompts
    assert sharegpt(tmp_path, [*bad, *good], num_prompts=6, seed=1) != prompts
    assert {p.output_len for p in sharegpt(tmp_path, [*bad, *good], num_prompts=6, output_len=9)} == {9}


def test_sharegpt_asks_again_if_it_is_short(tmp_path: Path) -> None:
    prompts = sharegpt(tmp_path, [conversation(f"question number {n} is this", "as " * 4) for n in range(3)], num_prompts=30)
    counts = Counter(prompt.content for prompt in prompts)
    assert len(prompts) == 30 and len(counts) == 3


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, "holds no conversation"),
        ([1, "x", {"conversations": 3}], "holds no conversation"),
        ([conversation("a", "b")], "no conversation fits"),
    ],
)
def test_a_bad_sharegpt_file_is_named(tmp_path: Path, entries: object, expected: str) -> None:
    with pytest.raises(cupola.OptionError, match=expected) as caught:
        sharegpt(tmp_path, entries)
    assert "talks.json" in str(caught.value)


# When they are sent


def test_arrivals_are_a_process_of_the_rate() -> None:
    assert arrival_times_s(LoadTest(num_prompts=3)) == [0, 0, 0]
    assert arrival_times_s(LoadTest(num_prompts=4, request_rate=2, burstiness=float("inf"))) == pytest.approx([0.5, 1, 1.5, 2])
    times = arrival_times_s(LoadTest(num_prompts=4000, request_rate=8))
    gaps = np.diff([0, *times])
    assert times[-1] == pytest.approx(500) and min(gaps) >= 0
    assert np.std(gaps) == pytest.approx(1 / 8, rel=0.1)  # an exponential distribution's is its mean
    even = np.diff(arrival_times_s(LoadTest(num_prompts=4000, request_rate=8, burstiness=100)))
    assert np.std(even) == pytest.approx(0.1 / 8, rel=0.1)  # a gamma distribution's: mean / sqrt(shape)
    assert arrival_times_s(LoadTest(num_prompts=9, request_rate=8)) != arrival_times_s(LoadTest(num_prompts=9, request_rate=8, seed=1))
    assert arrival_times_s(LoadTest(num_prompts=3, request_rate=8, burstiness=1e-300)) == [0, 0, 0]


def test_only_so_many_are_in_flight_and_records_keep_the_order() -> None:
    flying, most, done = 0, 0, []

    async def send(prompt: Prompt) -> RequestRecord:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        for _ in range(20 - prompt.num_tokens):
            await asyncio.sleep(0)
        flying -= 1
        return RequestRecord(0, 0, num_input_tokens=prompt.num_tokens)

    prompts = [Prompt("", number, 1) for number in range(20)]
    test = LoadTest(num_prompts=20, max_concurrency=3)
    records = asyncio.run(send_all(test, prompts, send, lambda: done.append(1)))
    assert [record.num_input_tokens for record in records] == list(range(20))
    assert (most, len(done)) == (3, 20)


# Whole runs

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
        (FakeServer(tokenizes="llama"), None, list),
        (FakeServer(has_usage=False), "12 answers came without usage", list),
        (FakeServer(newline="\r\n", piece_bytes=7), None, list),
        (FakeServer(plan=lambda number: Plan(closes=True)), None, list),
        (FakeServer(polls_before_ready=1), None, list),
        (FakeServer(polls_before_ready=1, loading_path="/v1/models"), None, list),
    ],
    ids=["no ids", "no tokenize", "llama-server", "no usage", "small pieces", "closes", "loading", "loading without health"],
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
