"""The report of a load test: for people as vLLM shows it, and as JSON with vLLM's keys, so that tools for its results read these."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from cupola.runtime.load_generator.load_test import LoadTest
from cupola.runtime.load_generator.metrics import Metrics, summarize
from cupola.runtime.load_generator.record import RequestRecord

WIDTH, LABEL = 50, 40
MAX_REASONS = 10  # for people; the JSON has all
_TITLES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


@dataclass(frozen=True)
class LoadReport:
    """A load test and what came of it.

    Args:
        test: what was asked for.
        model: the model's name on the server.
        date: when the measurement began.
        duration_s: from the first request's sending to the last one's end.
        records: every request, in the order of the prompts.
        client_cpu_s: CPU time that this process took meanwhile.
        notes: what is to be known of the figures.
    """

    test: LoadTest
    model: str
    date: datetime
    duration_s: float
    records: tuple[RequestRecord, ...] = field(repr=False)
    client_cpu_s: float = 0.0
    notes: tuple[str, ...] = ()

    @cached_property
    def metrics(self) -> Metrics:
        """The figures."""
        return summarize(self.records, self.duration_s, self.test.metric_percentiles, self.test.goodput)

    @property
    def failures(self) -> dict[str, int]:
        """Why requests failed, and how many did so; the commonest reason first."""
        return dict(Counter(record.error for record in self.records if record.error is not None).most_common())

    @property
    def client_cpu_us_per_chunk(self) -> float:
        """CPU time of the load generator for each streamed chunk, its whole work shared out; microseconds."""
        return 1e6 * self.client_cpu_s / max(1, sum(len(record.chunk_times_s) for record in self.records))

    def as_dict(self, detailed: bool = False) -> dict[str, object]:
        """For programs. Times in milliseconds where the key says so, else seconds; `detailed` adds a list entry a request."""
        test, metrics = self.test, self.metrics
        return {
            "date": self.date.strftime("%Y%m%d-%H%M%S"),
            "endpoint_type": self._backend,
            "backend": self._backend,
            "label": None,
            "model_id": self.model,
            "tokenizer_id": self.model,
            "num_prompts": test.num_prompts,
            "request_rate": "inf" if math.isinf(test.request_rate) else test.request_rate,
            "burstiness": "inf" if math.isinf(test.burstiness) else test.burstiness,
            "max_concurrency": test.max_concurrency,
            "dataset_name": test.dataset_name,
            "seed": test.seed,
            "duration": self.duration_s,
            "completed": metrics.num_completed,
            "failed": metrics.num_failed,
            "failures": self.failures,
            "total_input_tokens": metrics.num_input_tokens,
            "total_output_tokens": metrics.num_output_tokens,
            "total_cached_tokens": metrics.num_cached_tokens,
            "request_throughput": metrics.request_throughput,
            "request_goodput": metrics.request_goodput,
            "output_throughput": metrics.output_throughput,
            "total_token_throughput": metrics.total_token_throughput,
            "max_output_tokens_per_s": metrics.max_output_tokens_per_s,
            "max_concurrent_requests": metrics.max_concurrent_requests,
            "client_cpu_seconds": self.client_cpu_s,
            "client_cpu_us_per_chunk": self.client_cpu_us_per_chunk,
            "notes": list(self.notes),
            **(self._details() if detailed else {}),
            **self._latencies(),
        }

    def to_text(self) -> str:
        """For people."""
        test, metrics = self.test, self.metrics
        rows: list[tuple[str, object]] = [
            ("Successful requests:", metrics.num_completed),
            ("Failed requests:", metrics.num_failed),
            ("Maximum request concurrency:", test.max_concurrency),
            ("Request rate configured (RPS):", None if math.isinf(test.request_rate) else float(test.request_rate)),
            ("Benchmark duration (s):", self.duration_s),
            ("Total input tokens:", metrics.num_input_tokens),
            ("Cached input tokens:", metrics.num_cached_tokens),
            ("Total generated tokens:", metrics.num_output_tokens),
            ("Request throughput (req/s):", metrics.request_throughput),
            ("Request goodput (req/s):", metrics.request_goodput),
            ("Output token throughput (tok/s):", metrics.output_throughput),
            ("Peak output token throughput (tok/s):", metrics.max_output_tokens_per_s),
            ("Peak concurrent requests:", metrics.max_concurrent_requests),
            ("Total token throughput (tok/s):", metrics.total_token_throughput),
            ("Load generator's CPU (% of a core):", 100 * self.client_cpu_s / self.duration_s),
        ]
        lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}", *(_row(*row) for row in rows if row[1] is not None)]
        for name in test.percentile_metrics:
            lines += [f"{_TITLES[name]:-^{WIDTH}}", *self._latency_lines(name)]
        if self.failures:
            lines += [f"{'Why requests failed':-^{WIDTH}}", *self._failure_lines()]
        return "\n".join([*lines, "=" * WIDTH])

    def file_name(self) -> str:
        """As vLLM names its results."""
        concurrency = "" if self.test.max_concurrency is None else f"-concurrency{self.test.max_concurrency}"
        model = "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in self.model.rstrip("/").split("/")[-1])
        return f"{self._backend}-{self.test.request_rate:g}qps{concurrency}-{model}-{self.date:%Y%m%d-%H%M%S}.json"

    def save(self, file: Path, detailed: bool = False) -> None:
        """Writes `as_dict` as JSON; folders are made. Raises OSError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.as_dict(detailed)) + "\n", encoding="utf-8")

    def plot(self, file: str | Path) -> None:
        """Draws latencies, and load over time, into a PNG, SVG or PDF file. Raises OptionError if matplotlib is missing."""
        from cupola.runtime.load_generator.plot import draw  # matplotlib is optional, and slow to load

        draw(self.records, self.metrics, f"{self.model}, {self.date:%Y-%m-%d %H:%M}", Path(file))

    @staticmethod
    def check_plot(file: str | Path) -> None:
        """Raises OptionError if `plot` could not draw into `file`: better before a long test than after it."""
        from cupola.runtime.load_generator.plot import check_plot

        check_plot(Path(file))

    @property
    def _backend(self) -> str:
        return "openai-chat" if self.test.is_chat else "openai"

    def _details(self) -> dict[str, object]:
        records = self.records
        return {
            "input_lens": [r.num_input_tokens for r in records],
            "output_lens": [r.num_output_tokens if r.error is None else 0 for r in records],
            "ttfts": [r.ttft_s for r in records],
            "itls": [r.itls_s for r in records],
            "start_times": [r.start_s for r in records],
            "generated_texts": [r.text for r in records],
            "errors": [r.error or "" for r in records],
        }

    def _latencies(self) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for name in self.test.percentile_metrics:
            latency = self.metrics.latencies[name]
            found |= {f"mean_{name}_ms": latency.mean_ms, f"median_{name}_ms": latency.median_ms, f"std_{name}_ms": latency.std_ms}
            found |= {f"p{percent:g}_{name}_ms": value for percent, value in latency.percentiles_ms.items()}
        return found

    def _latency_lines(self, name: str) -> list[str]:
        latency, short = self.metrics.latencies[name], name.upper()
        rows = [("Mean", latency.mean_ms), ("Median", latency.median_ms)]
        rows += [(f"P{percent:g}", value) for percent, value in latency.percentiles_ms.items()]
        return [_row(f"{which} {short} (ms):", value) for which, value in rows]

    def _failure_lines(self) -> list[str]:
        reasons = list(self.failures.items())
        rest = sum(count for _, count in reasons[MAX_REASONS:])
        return [f"{count} × {reason}" for reason, count in reasons[:MAX_REASONS]] + ([f"{rest} × other reasons"] if rest else [])


def _row(label: str, value: object) -> str:
    return f"{label:<{LABEL}} {value:<10.2f}" if isinstance(value, float) else f"{label:<{LABEL}} {value!s:<10}"
