"""The load generator's parts: its figures by hand, answers as they stream in, prompts, and when they are sent."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.runtime.load_generator.answer import Answer
from cupola.runtime.load_generator.dataset import Prompt, make_prompts, make_warm_up, read_sharegpt
from cupola.runtime.load_generator.load_test import LoadTest
from cupola.runtime.load_generator.metrics import concurrency, latency, summarize, tokens_per_second
from cupola.runtime.load_generator.record import RequestRecord
from cupola.runtime.load_generator.traffic import arrival_times_s, send_all
from cupola.runtime.load_generator.words import WORDS, Vocabulary, learn_words

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
