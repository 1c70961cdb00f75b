"""`cupola serve SMALL --cascade LARGE`: the small model's first tokens decide who answers, and a stream takes nothing back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import cupola
from cupola.runtime.errors import OptionError, RequestError
from cupola.runtime.server.cascade import CascadeRule, _refuse_token_ids, confidence
from cupola.runtime.server.protocol import ChatRequest, CompletionRequest
from tests.runtime.server.harness import CHAT, Server, error_of, run_server
from tests.runtime.tiny_artifact import make_artifact

PROMPTS = ["a", "Hello", "42", "x y z", "What?", "No", "the end", "Q"]
NUM_TOKENS = 5
PARAMS = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


def alone(artifact: Path) -> tuple[list[str], list[float]]:
    """The greedy answers of a model to all prompts, and how sure it is."""
    outputs = cupola.LLM(artifact).generate(PROMPTS, cupola.SamplingParams(**PARAMS, logprobs=0))
    entries = [[next(iter(entry.values())).logprob for entry in output.outputs[0].logprobs or ()] for output in outputs]
    return [output.outputs[0].text for output in outputs], [confidence(one, NUM_TOKENS) for one in entries]


def samples(server: Server, name: str) -> dict[frozenset[str], float]:
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    return {frozenset(s.labels.values()): s.value for family in families for s in family.samples if s.name == f"cupola:{name}"}


def test_each_model_answers_what_is_its_own(tiny: Path, tmp_path: Path) -> None:
    large = make_artifact(tmp_path / "large", seed=1, context=4096).path
    (small_texts, sure), (large_texts, _) = alone(tiny), alone(large)
    threshold = sorted(sure)[len(sure) // 2] - 1e-4
    escalated = [one < threshold for one in sure]
    assert any(escalated) and not all(escalated)
    expected = [b if handed_on else a for a, b, handed_on in zip(small_texts, large_texts, escalated, strict=True)]
    options = ["--cascade", str(large), "--cascade-threshold", str(threshold), "--cascade-tokens", str(NUM_TOKENS)]
    with run_server(tiny, tmp_path, *options) as server:
        for prompt, text, handed_on, confident in zip(PROMPTS, expected, escalated, sure, strict=True):
            body: dict[str, Any] = {"prompt": prompt, **PARAMS}
            answer = server.complete(**body)
            assert answer["choices"][0]["text"] == text and answer["choices"][0]["logprobs"] is None
            assert answer["model"] == ("large" if handed_on else "tiny") and answer["usage"]["completion_tokens"] == 12
            details = answer["usage"]["cascade_details"]
            assert details["model"] == answer["model"] and details["confidence"] == pytest.approx(confident, abs=1e-3)
            assert (details["rejected_tokens"] >= NUM_TOKENS) == handed_on
            events = list(server.events({**body, "stream_options": {"include_usage": True}}))
            assert "".join(event["choices"][0]["text"] for event in events[:-1]) == text
            assert {event["model"] for event in events} == {answer["model"]} and "cascade_details" in events[-1]["usage"]
        counts = samples(server, "cascade_requests_total")
        kept, handed = frozenset({"tiny", "kept"}), frozenset({"tiny", "escalated"})
        assert counts == {kept: 2 * escalated.count(False), handed: 2 * escalated.count(True)}
        finished = samples(server, "request_success_total")
        assert finished[handed] == finished[frozenset({"large", "length"})] == 2 * escalated.count(True)
        assert {line["answered_by"] for line in server.lines() if "answered_by" in line} == {"tiny", "large"}
        direct = server.complete(prompt=PROMPTS[0], model="large", **PARAMS)
        assert (direct["choices"][0]["text"], direct["model"]) == (large_texts[0], "large") and "cascade_details" not in direct["usage"]
        assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == ["tiny", "large"]
        chat = server.post({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}, CHAT).json()
        assert chat["usage"]["cascade_details"]["model"] == chat["model"]
        both = server.complete(prompt=PROMPTS[:2], n=2, **PARAMS)["usage"]["cascade_details"]  # as sure as the least of all is
        assert both["confidence"] == pytest.approx(min(sure[:2]), abs=1e-3)
        assert error_of(server.post({"prompt": "a", "model": "other"}), 404)["code"] == "model_not_found"
        server.wait_idle()
        assert not server.errors() and server.stop() == 0


def test_token_ids_are_refused_where_vocabularies_differ() -> None:
    for body, field in (
        (CompletionRequest(prompt=[1, 2]), "prompt"), (CompletionRequest(prompt=[[1, 2]]), "prompt"),
        (CompletionRequest(prompt="a", logit_bias={"3": 1.0}), "logit_bias"),
        (ChatRequest(messages=[{"role": "user", "content": "a"}], stop_token_ids=[3]), "stop_token_ids"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=f"{field}: holds token ids") as caught:
            _refuse_token_ids(body)
        assert "name the larger model" in str(caught.value.fix)
    _refuse_token_ids(CompletionRequest(prompt=["a", "b"]))
    _refuse_token_ids(ChatRequest(messages=[{"role": "user", "content": "a"}]))


def test_confidence_is_a_mean() -> None:
    assert confidence([-1.0, -3.0, -100.0], 2) == -2 and confidence([-1.0], 9) == -1 and confidence([], 3) == 0
    assert confidence([math.nan, -1.0], 2) == -math.inf


@pytest.mark.parametrize(
    ("threshold", "num_tokens", "field"),
    [(0.1, 4, "threshold"), (math.nan, 4, "threshold"), (True, 4, "threshold"), (-1.0, 0, "tokens"), (-1.0, True, "tokens")],
)
def test_what_is_no_rule_is_refused(threshold: Any, num_tokens: Any, field: str) -> None:
    with pytest.raises(OptionError, match=f"cascade_{field}: is "):
        CascadeRule(threshold, num_tokens)


def test_a_larger_model_of_the_same_name_is_refused(tiny: Path) -> None:
    with pytest.raises(OptionError, match="cascade: 'tiny' is called as the first model is"):
        cupola.serve(tiny, port=0, cascade=tiny)
