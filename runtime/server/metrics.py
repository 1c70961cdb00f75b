"""The server's metrics, in Prometheus' format under vLLM's names (prefix `cupola:`)."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cupola.runtime.outputs import EngineStats

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
GAUGES = {
    "num_requests_running": "Sequences in the engine's batch.",
    "num_requests_waiting": "Sequences that wait for their turn.",
    "kv_cache_usage_perc": "The share of K/V blocks that are held; 1 is all of them.",
}
COUNTERS = {
    "num_preemptions": "Sequences that had to give their K/V blocks up.",
    "prefix_cache_queries": "Tokens that were looked for in the prefix cache.",
    "prefix_cache_hits": "Tokens that were found there.",
    "num_swapped_out": "K/V blocks put into the swap space for sequences that had to give way.",
    "num_swapped_in": "K/V blocks that came back from the swap space.",
    "prompt_tokens": "Prompt tokens of finished requests.",
    "generation_tokens": "Tokens generated.",
    "engine_restarts": "How often the engine's process had to be started again.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": "From a request's arrival to its first token.",
    "inter_token_latency_seconds": "Between a sequence's tokens.",
    "e2e_request_latency_seconds": "From a request's arrival to its end.",
    "request_queue_time_seconds": "From a request's arrival at the engine to its first step.",
    "request_prefill_time_seconds": "From a request's first step to its first token.",
    "request_decode_time_seconds": "From a request's first token to its end.",
}


@dataclass
class RequestTimes:
    """When what happened to a request, in seconds of `time.monotonic()`; None is not yet."""

    arrival: float
    queue_seconds: float = 0.0
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None


class Metrics:
    """All of a server's metrics; `model_name` is every one's label."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        labels = ("model_name",)
        self._gauges = {n: Gauge(f"cupola:{n}", text, labels, registry=self.registry).labels(model_name) for n, text in GAUGES.items()}
        self._counters = {
            n: Counter(f"cupola:{n}", text, labels, registry=self.registry).labels(model_name) for n, text in COUNTERS.items()
        }
        self._histograms = {
            n: Histogram(f"cupola:{n}", text, labels, buckets=SECONDS, registry=self.registry).labels(model_name)
            for n, text in HISTOGRAMS.items()
        }
        text = "Requests that were answered, by why they ended."
        self._finished = Counter("cupola:request_success", text, ("model_name", "finished_reason"), registry=self.registry)
        self._model_name = model_name
        self._last = EngineStats(0, 0, 0.0, 0, 0, 0)
        self._num_finished, self._total_seconds = 0, 0.0

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)

    def observe_stats(self, stats: EngineStats) -> None:
        """Takes in an engine's state after a step."""
        last, self._last = self._last, stats
        self._gauges["num_requests_running"].set(stats.num_running)
        self._gauges["num_requests_waiting"].set(stats.num_waiting)
        self._gauges["kv_cache_usage_perc"].set(stats.kv_usage)
        for name, now, before in (
            ("num_preemptions", stats.num_preemptions, last.num_preemptions),
            ("prefix_cache_queries", stats.num_prefix_queries, last.num_prefix_queries),
            ("prefix_cache_hits", stats.num_prefix_hits, last.num_prefix_hits),
            ("num_swapped_out", stats.num_swapped_out, last.num_swapped_out),
            ("num_swapped_in", stats.num_swapped_in, last.num_swapped_in),
        ):
            if now != before:
                self._counters[name].inc(now - before if now > before else now)  # a new engine counts from 0

    def observe_tokens(self, times: RequestTimes, now: float, num_tokens: int) -> None:
        """Takes in that a request's sequences got `num_tokens` more."""
        self._counters["generation_tokens"].inc(num_tokens)
        if times.first_token is None:
            times.first_token = now
            self._histograms["time_to_first_token_seconds"].observe(now - times.arrival)
        elif times.last_token is not None:
            self._histograms["inter_token_latency_seconds"].observe(now - times.last_token)
        times.last_token = now

    def observe_end(self, times: RequestTimes, now: float, num_prompt_tokens: int, finish_reasons: list[str]) -> None:
        """Takes in that a request is answered."""
        times.finished = now
        first = times.first_token or now
        self._counters["prompt_tokens"].inc(num_prompt_tokens)
        for reason in finish_reasons:
            self._finished.labels(self._model_name, reason).inc()
        self._histograms["e2e_request_latency_seconds"].observe(now - times.arrival)
        self._histograms["request_queue_time_seconds"].observe(times.queue_seconds)
        self._histograms["request_prefill_time_seconds"].observe(max(0.0, first - times.arrival - times.queue_seconds))
        self._histograms["request_decode_time_seconds"].observe(now - first)
        self._num_finished += 1
        self._total_seconds += now - times.arrival

    def count_engine_restart(self) -> None:
        """Takes in that the engine had died."""
        self._counters["engine_restarts"].inc()
        self.observe_stats(EngineStats(0, 0, 0.0, 0, 0, 0))

    def mean_request_seconds(self) -> float:
        """How long requests took so far."""
        return self._total_seconds / self._num_finished if self._num_finished else 1.0
