"""The metrics of prompts and their completions, against counts that are written out here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cupola.runtime.engine.outputs import EngineStats
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.server.messages import CompletionDelta, RequestDelta
from cupola.runtime.server.metrics import HISTOGRAMS, Metrics, PromptProgress


def figures(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            reason = sample.labels.get("finished_reason")
            if "le" not in sample.labels:
                found[sample.name.removeprefix("cupola:") + (f".{reason}" if reason else "")] = sample.value
    return found


def delta(*completions: tuple[int, int, str | None], finished: bool = False) -> RequestDelta:
    """Of each completion its index, how many tokens it got, and why it ended."""
    made = [CompletionDelta(index, "", [7] * num_tokens, None, reason, None) for index, num_tokens, reason in completions]
    return RequestDelta("x", made, finished, num_cached_tokens=3, queue_seconds=0.5)


def test_gaps_are_those_of_each_sequence():
    metrics = Metrics("m")
    progress = PromptProgress(10.0, 5, SamplingParams(n=2, max_tokens=9))
    metrics.observe(progress, 12.0, delta((0, 1, None), (1, 1, None)))
    metrics.observe(progress, 13.0, delta((0, 1, None)))
    metrics.observe(progress, 14.0, delta((1, 4, None)))  # that came together, in the two seconds since the first
    found = figures(metrics)
    assert found["inter_token_latency_seconds_count"] == found["time_per_output_token_seconds_count"] == 5
    assert found["inter_token_latency_seconds_sum"] == found["time_per_output_token_seconds_sum"] == pytest.approx(1 + 4 * 0.5)
    assert (found["time_to_first_token_seconds_count"], found["time_to_first_token_seconds_sum"]) == (1, 2.0)
    assert (found["prompt_tokens_total"], found["generation_tokens_total"]) == (5, 7)
    assert found["e2e_request_latency_seconds_count"] == 0
    metrics.observe(progress, 15.0, delta((0, 0, "stop"), (1, 1, "length"), finished=True))
    metrics.observe_end(progress, 99.0)  # it has ended already
    found = figures(metrics)
    expected = {
        "e2e_request_latency_seconds": 5.0,
        "request_queue_time_seconds": 0.5,
        "request_inference_time_seconds": 4.5,
        "request_prefill_time_seconds": 1.5,
        "request_decode_time_seconds": 3.0,
        "request_time_per_output_token_seconds": 3.0 / 5,
        "request_prompt_tokens": 5,
        "request_prefill_kv_computed_tokens": 2,
        "request_generation_tokens": 8,
        "request_max_num_generation_tokens": 6,
        "request_params_n": 2,
        "request_params_max_tokens": 9,
    }
    assert {name: found[f"{name}_sum"] for name in expected} == pytest.approx(expected)
    assert all(found[f"{name}_count"] == 1 for name in expected)
    assert (found["request_success_total.stop"], found["request_success_total.length"]) == (1, 1)


def test_what_is_aborted_counts():
    metrics = Metrics("m")
    begun, waiting = (PromptProgress(10.0, 5, SamplingParams(max_tokens=None)) for _ in range(2))
    metrics.observe(begun, 11.0, delta((0, 1, None)))
    for progress in (begun, waiting):
        metrics.observe_end(progress, 14.0)
    found = figures(metrics)
    assert found["request_success_total.abort"] == 2
    assert (found["e2e_request_latency_seconds_count"], found["e2e_request_latency_seconds_sum"]) == (2, 8.0)
    assert (found["request_decode_time_seconds_count"], found["request_decode_time_seconds_sum"]) == (1, 3.0)
    assert (found["prompt_tokens_total"], found["request_generation_tokens_sum"]) == (5, 1)
    assert metrics.mean_request_seconds() == 1.0  # as before anything was answered: how long answers take isn't known


def test_steps_are_counted_once_each():
    metrics = Metrics("m")
    metrics.observe_stats(EngineStats(1, 0, 0.5, 0, 0, 0, num_steps=1, num_step_tokens=40))
    metrics.observe_stats(EngineStats(1, 0, 0.5, 0, 0, 0, num_steps=5, num_step_tokens=48))  # four steps of two tokens
    metrics.observe_stats(EngineStats(0, 0, 0.0, 0, 0, 0, num_steps=5, num_step_tokens=48))  # an abort
    found = figures(metrics)
    assert (found["iteration_tokens_total_count"], found["iteration_tokens_total_sum"]) == (5, 48)
    metrics.count_engine_restart()
    metrics.observe_stats(EngineStats(1, 0, 0.5, 0, 0, 0, num_steps=1, num_step_tokens=3))
    assert figures(metrics)["iteration_tokens_total_sum"] == 51


def test_drafts_are_counted_by_their_places():
    metrics = Metrics("model")
    stats = EngineStats(1, 0, 0.5, 0, 0, 0, num_drafts=1, num_draft_tokens=4, num_accepted_tokens=2, accepted_by_place=(1, 1))
    metrics.observe_stats(stats)
    metrics.observe_stats(replace(stats, num_drafts=3, num_draft_tokens=9, num_accepted_tokens=5, accepted_by_place=(2, 2, 1)))
    metrics.observe_stats(replace(stats, num_drafts=1, num_draft_tokens=2, num_accepted_tokens=1, accepted_by_place=(1,)))  # a new engine
    text, prefix = metrics.text().decode(), "cupola:spec_decode_num"
    for name, value in (("drafts", 4), ("draft_tokens", 11), ("accepted_tokens", 6)):
        assert f'{prefix}_{name}_total{{model_name="model"}} {value}.0' in text
    for place, value in enumerate((3, 2, 1)):
        assert f'{prefix}_accepted_tokens_per_pos_total{{model_name="model",position="{place}"}} {value}.0' in text


def test_every_histogram_is_shown_before_anything_happened():
    found = figures(Metrics("m"))
    assert all(found[f"{name}_count"] == 0 for name in [*HISTOGRAMS, "time_per_output_token_seconds"])
