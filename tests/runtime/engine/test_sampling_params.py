"""Every field of SamplingParams is checked, and the error names it."""

from __future__ import annotations

import math

import pytest

from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import RequestError

BAD = [
    ("n", 0), ("n", -1), ("n", 10**9), ("n", True), ("n", 1.0), ("n", None),
    ("temperature", -1), ("temperature", 1e9), ("temperature", math.nan), ("temperature", math.inf), ("temperature", True),
    ("temperature", "1"), ("temperature", None),
    ("top_p", -0.1), ("top_p", 1.1), ("top_p", math.nan), ("top_k", -5), ("top_k", 2**63), ("top_k", 1.5), ("min_p", -0.1), ("min_p", 1.1),
    ("repetition_penalty", 0), ("repeat_last_n", -2),
    ("presence_penalty", 3), ("frequency_penalty", -3), ("seed", 2**63), ("seed", True),
    ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**63), ("max_tokens", False), ("min_tokens", -1), ("min_tokens", 17),
    ("logprobs", -2), ("logprobs", 2**63), ("prompt_logprobs", -2), ("logprobs", True), ("logprobs", 1.5),
    ("stop", ""), ("stop", ["a", ""]), ("stop", ["a"] * 10**4), ("stop", "a" * 10**6), ("stop", [1]), ("stop", 1), ("stop", {"a": 1}),
    ("stop_token_ids", [-1]), ("stop_token_ids", [True]), ("stop_token_ids", "1"), ("stop_token_ids", [1] * 10**4),
    ("logit_bias", {-1: 1}), ("logit_bias", {1: 101}), ("logit_bias", {1: math.nan}), ("logit_bias", [1]), ("logit_bias", {"1": 1}),
    ("bad_words", "a"), ("bad_words", [""]), ("bad_words", [" "]), ("bad_words", [1]), ("bad_words", ["a"] * 65),
    ("bad_words", ["a" * 129]),
    ("allowed_token_ids", []), ("allowed_token_ids", [-1]), ("allowed_token_ids", [True]), ("allowed_token_ids", 1),
    ("truncate_prompt_tokens", 0), ("truncate_prompt_tokens", -2), ("truncate_prompt_tokens", 1.5),
    ("logit_bias", dict.fromkeys(range(10**4), 1)), ("ignore_eos", 1), ("detokenize", None), ("skip_special_tokens", "yes"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda value: repr(value)[:20])
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
    assert caught.value.fix
    assert len(str(caught.value)) < 200


def test_stop_needs_text():
    with pytest.raises(RequestError, match="detokenize"):
        SamplingParams(stop="a", detokenize=False)


def test_good_values():
    assert SamplingParams(stop="a").stop_strings == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(temperature=1e-9).greedy
    assert SamplingParams(top_p=0).greedy
    assert not SamplingParams(temperature=100, top_p=1e-9, top_k=-1, seed=-5, max_tokens=None, min_tokens=10**9).greedy
