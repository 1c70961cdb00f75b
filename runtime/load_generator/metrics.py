"""The figures of a load test, by vLLM's definitions.

TTFT is the time from sending a request to its first chunk, TPOT is (end-to-end − TTFT) / (output tokens − 1), ITL are the gaps
between chunks; failed requests are in none of them. Throughputs are over the whole duration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cupola.runtime.load_generator.record import RequestRecord

MS_PER_S = 1000.0


@dataclass(frozen=True)
class Latency:
    """A metric over all requests (of ITL, over all gaps): milliseconds; all 0 if there is no sample."""

    mean_ms: float
    median_ms: float
    std_ms: float
    percentiles_ms: Mapping[float, float]


@dataclass(frozen=True)
class Metrics:
    """The metrics of a load test. `request_goodput` is None without objectives, `num_cached_tokens` if the server doesn't report it."""

    num_completed: int
    num_failed: int
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int | None
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    latencies: Mapping[str, Latency]


def summarize(
    records: Sequence[RequestRecord], duration_s: float, percentiles: Sequence[float], goodput: Mapping[str, float] | None
) -> Metrics:
    """The metrics of `records`, which took `duration_s` altogether; `goodput` has milliseconds a metric."""
    done = [record for record in records if record.error is None]
    num_input, num_output = sum(r.num_input_tokens for r in done), sum(r.num_output_tokens for r in done)
    cached = [r.num_cached_tokens for r in done if r.num_cached_tokens is not None]
    return Metrics(
        len(done),
        len(records) - len(done),
        num_input,
        num_output,
        sum(cached) if cached else None,
        len(done) / duration_s,
        sum(is_good(record, goodput) for record in done) / duration_s if goodput else None,
        num_output / duration_s,
        (num_input + num_output) / duration_s,
        float(max(tokens_per_second(done), default=0.0)),
        int(max(concurrency(done)[1], default=0)),
        {name: latency(samples, percentiles) for name, samples in samples_s(done).items()},
    )


def samples_s(done: Sequence[RequestRecord]) -> dict[str, list[float]]:
    """Metric to its samples, in seconds."""
    return {
        "ttft": [r.ttft_s for r in done],
        "tpot": [r.tpot_s for r in done if r.tpot_s is not None],
        "itl": [gap for r in done for gap in r.itls_s],
        "e2el": [r.e2el_s for r in done],
    }


def latency(samples: Sequence[float], percentiles: Sequence[float]) -> Latency:
    """Statistics of samples in seconds. Percentiles are interpolated linearly, as numpy's are."""
    values = np.asarray(samples or [0.0]) * MS_PER_S
    found = dict(zip(percentiles, np.percentile(values, percentiles).tolist(), strict=True))
    return Latency(float(values.mean()), float(np.median(values)), float(values.std()), found)


def is_good(record: RequestRecord, goodput: Mapping[str, float]) -> bool:
    """True if a request met every objective, in milliseconds; an answer of one token has a TPOT of 0."""
    taken_s = {"ttft": record.ttft_s, "tpot": record.tpot_s or 0.0, "e2el": record.e2el_s}
    return all(taken_s[name] * MS_PER_S <= limit for name, limit in goodput.items())


def tokens_per_second(done: Sequence[RequestRecord]) -> list[float]:
    """Output tokens in each second since the first request was sent. A chunk of several tokens brings them all."""
    if not done:
        return []
    start_s = min(record.start_s for record in done)
    counts = np.zeros(int(max(record.end_s for record in done) - start_s) + 1)
    for record in done:
        if len(record.chunk_times_s):
            seconds = (np.asarray(record.chunk_times_s) - start_s).astype(int)
            np.add.at(counts, seconds, record.num_output_tokens / len(seconds))
    return counts.tolist()


def concurrency(done: Sequence[RequestRecord]) -> tuple[list[float], list[int]]:
    """Seconds since the first request was sent, and how many requests were in flight from then on."""
    changes = sorted([(r.end_s, -1) for r in done] + [(r.start_s, 1) for r in done])
    times = [time - min(r.start_s for r in done) for time, _ in changes] if done else []
    return times, np.cumsum([step for _, step in changes]).tolist()
