"""The server's metrics, in Prometheus' format under vLLM's names (prefix `cupola:`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import HistogramMetricFamily

from cupola.runtime.engine.outputs import EngineStats
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.server import messages as m

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
COUNTS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))  # of tokens, up to half a million
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
GAUGES = {
    "num_requests_running": "Sequences in the engine's batch.",
    "num_requests_waiting": "Sequences that wait for their turn.",
    "kv_cache_usage_perc": "The share of K/V blocks that are held; 1 is all of them.",
}
COUNTERS = {
    "num_preemptions": "Sequences that had to give their K/V blocks up.",
    "prefix_cache_queries": "Tokens that were looked for in the prefix cache.",
    "prefix_cache_hits": "Tokens that were found there.",
    "num_loaded": "K/V blocks read from the prefix cache on disk.",
    "num_saved": "K/V blocks written to the prefix cache on disk.",
    "num_swapped_out": "K/V blocks swapped out for preempted sequences.",
    "num_swapped_in": "K/V blocks that came back from the swap space.",
    "spec_decode_num_drafts": "Drafts of speculative decoding that the model looked at.",
    "spec_decode_num_draft_tokens": "Tokens of drafts.",
    "spec_decode_num_accepted_tokens": "Tokens of drafts that were right.",
    "prompt_tokens": "Tokens of prompts whose first token came.",
    "generation_tokens": "Tokens generated.",
    "engine_restarts": "How often the engine's process had to be started again.",
}
HISTOGRAMS = {  # each is of single prompts, of which a request may have several
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", SECONDS),
    "inter_token_latency_seconds": ("Between a sequence's tokens.", SECONDS),
    "request_time_per_output_token_seconds": ("Between a request's tokens, its mean.", SECONDS),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", SECONDS),
    "request_queue_time_seconds": ("From a request's arrival at the engine to its first step.", SECONDS),
    "request_inference_time_seconds": ("From a request's first step to its end.", SECONDS),
    "request_prefill_time_seconds": ("From a request's first step to its first token.", SECONDS),
    "request_decode_time_seconds": ("From a request's first token to its end.", SECONDS),
    "request_prompt_tokens": ("A request's prompt, in tokens.", COUNTS),
    "request_prefill_kv_computed_tokens": ("A request's prompt tokens that were not in the prefix cache.", COUNTS),
    "request_generation_tokens": ("Tokens generated for a request.", COUNTS),
    "request_max_num_generation_tokens": ("Tokens of a request's longest completion.", COUNTS),
    "request_params_n": ("Completions asked for.", (1, 2, 5, 10, 20)),
    "request_params_max_tokens": ("Tokens asked for at most.", COUNTS),
    "iteration_tokens_total": ("Tokens of a step of the model.", STEP_TOKENS),
}
OLD_NAMES = {"time_per_output_token_seconds": "inter_token_latency_seconds"}  # which dashboards still ask for


class PromptProgress:
    """The progress of one prompt and its completions. Times are those of `time.monotonic()`; None is not yet."""

    def __init__(self, arrival: float, num_prompt_tokens: int, params: SamplingParams) -> None:
        self.arrival, self.num_prompt_tokens, self.params = arrival, num_prompt_tokens, params
        self.queue_seconds, self.num_cached_tokens = 0.0, 0
        self.first_token: float | None = None
        self.last_tokens: list[float | None] = [None] * params.n
        self.num_tokens = [0] * params.n
        self.finish_reasons = ["abort"] * params.n  # until they have another one
        self.finished = False


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
            n: Histogram(f"cupola:{n}", text, labels, buckets=buckets, registry=self.registry).labels(model_name)
            for n, (text, buckets) in HISTOGRAMS.items()
        }
        self.registry.register(_OldNames(self.registry))
        text = "Requests that were answered, by why they ended."
        self._finished = Counter("cupola:request_success", text, ("model_name", "finished_reason"), registry=self.registry)
        text = "Tokens of drafts that were right, by their places in these."
        self._accepted = Counter("cupola:spec_decode_num_accepted_tokens_per_pos", text, ("model_name", "position"), registry=self.registry)
        text = "Requests by the model of a cascade that answers: kept by the small one, or escalated to the large one."
        self._choices = Counter("cupola:cascade_requests", text, ("model_name", "choice"), registry=self.registry)
        self._registries = [self.registry]
        self._model_name = model_name
        self._last = EngineStats(0, 0, 0.0, 0, 0, 0)
        self._num_finished, self._total_seconds = 0, 0.0

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry if len(self._registries) == 1 else _Joined(self._registries))

    def add(self, other: Metrics) -> None:
        """Shows those of another model too, under its name."""
        self._registries.append(other.registry)

    def count_choice(self, *, escalated: bool) -> None:
        """Takes in which model of a cascade answers a request."""
        self._choices.labels(self._model_name, "escalated" if escalated else "kept").inc()

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
            ("num_loaded", stats.num_loaded, last.num_loaded),
            ("num_saved", stats.num_saved, last.num_saved),
            ("num_swapped_out", stats.num_swapped_out, last.num_swapped_out),
            ("num_swapped_in", stats.num_swapped_in, last.num_swapped_in),
            ("spec_decode_num_drafts", stats.num_drafts, last.num_drafts),
            ("spec_decode_num_draft_tokens", stats.num_draft_tokens, last.num_draft_tokens),
            ("spec_decode_num_accepted_tokens", stats.num_accepted_tokens, last.num_accepted_tokens),
        ):
            if now != before:
                self._counters[name].inc(now - before if now > before else now)  # a new engine counts from 0
        for place, now in enumerate(stats.accepted_by_place):
            before = last.accepted_by_place[place] if place < len(last.accepted_by_place) else 0
            self._accepted.labels(self._model_name, str(place)).inc(now - before if now >= before else now)
        for _ in range(stats.num_steps - last.num_steps):
            mean = (stats.num_step_tokens - last.num_step_tokens) / (stats.num_steps - last.num_steps)
            self._histograms["iteration_tokens_total"].observe(mean)

    def observe(self, progress: PromptProgress, now: float, delta: m.RequestDelta) -> None:
        """Takes in what is new of a prompt's completions."""
        progress.queue_seconds, progress.num_cached_tokens = delta.queue_seconds, delta.num_cached_tokens
        for completion in delta.completions:
            if completion.token_ids:
                self._observe_tokens(progress, now, completion.index, len(completion.token_ids))
            if completion.finish_reason is not None:
                progress.finish_reasons[completion.index] = completion.finish_reason
        if delta.finished:
            self.observe_end(progress, now)

    def observe_end(self, progress: PromptProgress, now: float) -> None:
        """Takes in that nothing more comes of a prompt, finished or not; once is enough."""
        if progress.finished:
            return
        progress.finished = True
        for reason in progress.finish_reasons:
            self._finished.labels(self._model_name, reason).inc()
        found = _sizes(progress) | _seconds(progress, now)
        for name, value in found.items():
            self._histograms[name].observe(value)
        if "abort" not in progress.finish_reasons:
            self._num_finished += 1
            self._total_seconds += now - progress.arrival

    def _observe_tokens(self, progress: PromptProgress, now: float, index: int, num_tokens: int) -> None:
        self._counters["generation_tokens"].inc(num_tokens)
        if progress.first_token is None:
            progress.first_token = now
            self._counters["prompt_tokens"].inc(progress.num_prompt_tokens)
            self._histograms["time_to_first_token_seconds"].observe(now - progress.arrival)
        last, progress.last_tokens[index] = progress.last_tokens[index], now
        progress.num_tokens[index] += num_tokens
        if last is not None:
            for _ in range(num_tokens):  # tokens that come together came one by one
                self._histograms["inter_token_latency_seconds"].observe((now - last) / num_tokens)

    def count_engine_restart(self) -> None:
        """Takes in that the engine had died."""
        self._counters["engine_restarts"].inc()
        self.observe_stats(EngineStats(0, 0, 0.0, 0, 0, 0))

    def mean_request_seconds(self) -> float:
        """How long requests took so far."""
        return self._total_seconds / self._num_finished if self._num_finished else 1.0


def _sizes(progress: PromptProgress) -> dict[str, float]:
    max_tokens = progress.params.max_tokens
    return {
        "request_prompt_tokens": progress.num_prompt_tokens,
        "request_generation_tokens": sum(progress.num_tokens),
        "request_max_num_generation_tokens": max(progress.num_tokens),
        "request_params_n": progress.params.n,
        **({} if max_tokens is None else {"request_params_max_tokens": max_tokens}),
    }


def _seconds(progress: PromptProgress, now: float) -> dict[str, float]:
    """The durations of a request's stages, as far as it came."""
    found = {"e2e_request_latency_seconds": now - progress.arrival}
    first = progress.first_token
    if first is None:
        return found
    started, num_longest = progress.arrival + progress.queue_seconds, max(progress.num_tokens)
    found |= {
        "request_prefill_kv_computed_tokens": progress.num_prompt_tokens - progress.num_cached_tokens,
        "request_queue_time_seconds": progress.queue_seconds,
        "request_inference_time_seconds": max(0.0, now - started),
        "request_prefill_time_seconds": max(0.0, first - started),
        "request_decode_time_seconds": now - first,
    }
    return found if num_longest == 1 else {**found, "request_time_per_output_token_seconds": (now - first) / (num_longest - 1)}


class _Joined(CollectorRegistry):
    """Several registries as one: the samples of a family stand together, as the format wants them."""

    def __init__(self, registries: Sequence[CollectorRegistry]) -> None:
        super().__init__()
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        """The families of all."""
        found: dict[str, Metric] = {}
        for family in (family for registry in self._registries for family in registry.collect()):
            if family.name in found:
                found[family.name].samples += family.samples
            else:
                found[family.name] = family
        yield from found.values()


class _OldNames:
    """Shows some histograms a second time under the names that vLLM had for them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def describe(self) -> list[HistogramMetricFamily]:
        """The metrics of `collect` without values: the registry calls this when the collector is registered."""
        return [HistogramMetricFamily(f"cupola:{old}", f"The same as {new}.") for old, new in OLD_NAMES.items()]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histograms as they are now."""
        for old, new in OLD_NAMES.items():
            family = HistogramMetricFamily(f"cupola:{old}", f"The same as {new}.")
            names = {f"cupola:{new}{suffix}" for suffix in ("_bucket", "_count", "_sum")}
            for found in self._registry.restricted_registry(names).collect():
                for sample in found.samples:
                    family.add_sample(sample.name.replace(new, old), sample.labels, sample.value)
            yield family
