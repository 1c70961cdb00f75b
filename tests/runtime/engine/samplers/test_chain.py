"""llama.cpp's samplers against their definitions, written out here in float64, a token at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from cupola.runtime.engine.samplers.chain import Chain
from cupola.runtime.engine.samplers.dry import Repetitions, common_suffixes
from cupola.runtime.engine.samplers.params import LETTERS, ORDER
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import RequestError

Logits = dict[int, float]  # what may still come


def softmax(logits: Logits) -> dict[int, float]:
    highest = max(logits.values())
    total = sum(math.exp(value - highest) for value in logits.values())
    return {i: math.exp(value - highest) / total for i, value in logits.items()}


def by_probability(logits: Logits) -> list[tuple[int, float]]:
    return sorted(softmax(logits).items(), key=lambda item: -item[1])


def until(ranked: list[tuple[int, float]], logits: Logits, enough) -> Logits:
    kept, total = {}, 0.0
    for i, p in ranked:
        kept[i] = logits[i]
        total += p
        if enough(total):
            break
    return kept


def typical(logits: Logits, p: SamplingParams) -> Logits:
    probabilities = softmax(logits)
    entropy = -sum(q * math.log(q) for q in probabilities.values())
    ranked = sorted(probabilities.items(), key=lambda item: abs(-math.log(item[1]) - entropy))
    return logits if p.typical_p >= 1 else until(ranked, logits, lambda total: total > p.typical_p)


def top_p(logits: Logits, p: SamplingParams) -> Logits:
    return logits if p.top_p >= 1 else until(by_probability(logits), logits, lambda total: total >= p.top_p)


def top_k(logits: Logits, p: SamplingParams) -> Logits:
    return logits if p.top_k <= 0 else {i: logits[i] for i, _ in by_probability(logits)[: p.top_k]}


def min_p(logits: Logits, p: SamplingParams) -> Logits:
    probabilities = softmax(logits)
    return {i: value for i, value in logits.items() if probabilities[i] >= p.min_p * max(probabilities.values())}


def top_n_sigma(logits: Logits, p: SamplingParams) -> Logits:
    if p.top_n_sigma <= 0:
        return logits
    mean = sum(logits.values()) / len(logits)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logits.values()) / len(logits))
    return {i: value for i, value in logits.items() if value >= max(logits.values()) - p.top_n_sigma * deviation}


def xtc(logits: Logits, p: SamplingParams, uniform: float) -> Logits:
    if p.xtc_threshold > 0.5 or uniform >= p.xtc_probability:
        return logits
    likely = [i for i, q in by_probability(logits) if q >= p.xtc_threshold]
    return {i: value for i, value in logits.items() if i not in likely[:-1]}


def temperature(logits: Logits, p: SamplingParams) -> Logits:
    chosen = p.temperature
    if p.dynatemp_range > 0 and len(logits) > 1:
        entropy = -sum(q * math.log(q) for q in softmax(logits).values() if q > 0)
        lowest, highest = max(0.0, p.temperature - p.dynatemp_range), p.temperature + p.dynatemp_range
        chosen = lowest + (highest - lowest) * (entropy / math.log(len(logits))) ** p.dynatemp_exponent
    if chosen <= 0:
        best = max(logits, key=lambda i: logits[i])
        return {best: logits[best]}
    return {i: value / chosen for i, value in logits.items()}


def penalties(logits: Logits, p: SamplingParams, tokens: list[int], num_prompt: int) -> Logits:
    first = len(tokens) - p.repeat_last_n if 0 <= p.repeat_last_n <= len(tokens) else 0
    repeated, counted = tokens[first:], tokens[max(first, num_prompt) :]
    changed = dict(logits)
    for i in logits:
        if i in repeated:
            changed[i] = changed[i] / p.repetition_penalty if changed[i] > 0 else changed[i] * p.repetition_penalty
        if i in counted:
            changed[i] -= p.presence_penalty + p.frequency_penalty * counted.count(i)
    return changed


def dry(logits: Logits, p: SamplingParams, tokens: list[int], breakers: set[int]) -> Logits:
    """`breakers` are tokens that are sequence breakers by themselves."""
    if not p.dry_multiplier or not p.dry_penalty_last_n:
        return logits
    window = tokens if p.dry_penalty_last_n < 0 else tokens[max(0, len(tokens) - p.dry_penalty_last_n) :]
    end = list(itertools.takewhile(lambda i: i not in breakers, reversed(window)))  # from the last token to the first
    longest: dict[int, int] = {}
    for at in range(1, len(window)):
        before = window[:at][::-1]
        length = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(end, before, strict=False)))
        longest[window[at]] = max(longest.get(window[at], 0), length)
    allowed = p.dry_allowed_length
    costs = {i: p.dry_multiplier * p.dry_base ** (n - allowed) for i, n in longest.items() if n >= max(allowed, 1)}
    return {i: value - costs.get(i, 0.0) for i, value in logits.items()}


class Uniforms:
    """A random stream that is known."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


def draw(logits: Logits, uniform: float) -> int:
    total = 0.0
    for i, p in sorted(softmax(logits).items()):
        total += p
        if total > uniform:
            return i
    raise AssertionError


def reference(logits: Logits, p: SamplingParams, tokens: list[int], num_prompt: int, breakers: set[int], uniforms: list[float]) -> int:
    simple = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typ_p": typical, "top_n_sigma": top_n_sigma, "temperature": temperature}
    for name in p.sampler_names:
        if name == "penalties":
            logits = penalties(logits, p, tokens, num_prompt)
        elif name == "dry":
            logits = dry(logits, p, tokens, breakers)
        elif name == "xtc":
            logits = xtc(logits, p, uniforms.pop(0)) if p.xtc_probability else logits
        else:
            logits = simple[name](logits, p)
    return draw(logits, uniforms.pop(0))


SETTINGS = [
    {"typical_p": 0.3},
    {"typical_p": 0.9, "temperature": 2.0},
    {"top_n_sigma": 0.7},
    {"top_n_sigma": 1.5, "temperature": 0.6},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"xtc_probability": 0.5, "xtc_threshold": 0.15, "temperature": 0.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.6},
    {"dynatemp_range": 0.5, "temperature": 0.8},
    {"dynatemp_range": 3.0, "dynatemp_exponent": 2.0},
    {"dry_multiplier": 0.8},
    {"dry_multiplier": 2.0, "dry_base": 1.3, "dry_allowed_length": 1, "dry_penalty_last_n": 12},
    {"dry_multiplier": 50.0, "temperature": 0.0},
    {"samplers": ["top_k", "temperature"], "top_k": 4, "temperature": 0.4, "typical_p": 0.2},
    {"samplers": ["temperature", "min_p", "top_p"], "temperature": 3.0, "min_p": 0.1, "top_p": 0.7},
    {"samplers": "typxe", "typical_p": 0.8, "top_p": 0.9, "temperature": 1.4, "xtc_probability": 0.6, "repetition_penalty": 1.7},
    {"samplers": []},
    {"samplers": ["penalties"], "repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.3},
    {"samplers": ["penalties"], "repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.3, "repeat_last_n": 5},
    {"samplers": ["penalties"], "repetition_penalty": 1.5, "repeat_last_n": 0},
    {"samplers": ["penalties"], "frequency_penalty": 0.3, "repeat_last_n": -1},
    {"typical_p": 0.9, "top_k": 10, "top_p": 0.95, "min_p": 0.05, "top_n_sigma": 2.0, "xtc_probability": 0.5, "dry_multiplier": 1.0,
     "repetition_penalty": 1.2, "temperature": 0.7, "dynatemp_range": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=[f"{i}-{'-'.join(setting)}" for i, setting in enumerate(SETTINGS)])
def test_samplers_are_as_defined(setting: dict):
    params, rng = SamplingParams(**setting), np.random.default_rng(3)
    assert params.uses_chain
    for _ in range(60):
        logits = rng.normal(0, 2, 24).astype(np.float32)
        logits[rng.integers(24, size=3)] = -np.inf
        tokens, breakers = rng.integers(0, 5, 30).tolist(), {int(rng.integers(5))}
        uniforms = rng.random(2).tolist()
        # Each token writes a letter; breakers write the one that breaks.
        chain = Chain(params, 20, lambda i, breakers=breakers: b"\n" if i in breakers else bytes([97 + i]))
        left = {i: float(value) for i, value in enumerate(logits) if value > -np.inf}
        expected = reference(left, params, tokens, 20, breakers, list(uniforms))
        assert chain.choose(logits, tokens, Uniforms(*uniforms)) == expected


def test_what_repeats_is_known_as_the_sequence_grows():
    rng = np.random.default_rng(5)
    params = SamplingParams(dry_multiplier=1.0)
    for alphabet in (1, 2, 3):
        tokens = rng.integers(0, alphabet, 40).tolist()
        grown = Repetitions((), None)
        for n in range(10, 41, 3):  # several tokens at once, too
            grown.update(tokens[:n])
            fresh = Repetitions((), None)
            fresh.update(tokens[:n])
            for found, expected in zip(grown.penalties(params), fresh.penalties(params), strict=True):
                assert found.tolist() == expected.tolist()
            lengths = [next((k for k in range(n) if i < k or tokens[i - k] != tokens[n - 1 - k]), n) for i in range(n)]
            assert common_suffixes(tokens[:n]).tolist() == lengths


def test_a_breaker_may_be_cut_across_tokens_and_have_text_around_it():
    pieces = {0: b"a", 1: b"x#", 2: b"#y", 3: b"ab##cd"}
    for tokens, since in (([0, 0, 0], 3), ([0, 1, 2, 0, 0], 2), ([1, 2], 0), ([1, 0, 2], 3), ([0, 3, 0], 1)):
        repetitions = Repetitions(("##",), pieces.__getitem__)
        repetitions.update(tokens)
        assert repetitions.num_since_breaker == since, tokens
        grown = Repetitions(("##",), pieces.__getitem__)
        for n in range(1, len(tokens) + 1):
            grown.update(tokens[:n])
        assert grown.num_since_breaker == since, tokens


def test_mirostat_holds_the_surprise():
    """Version 2 as its paper has it: truncate, draw, and move the bound by what was missed."""
    params, rng = SamplingParams(mirostat=2, mirostat_tau=3.0, mirostat_eta=0.2, temperature=0.9, top_k=1), np.random.default_rng(9)
    chain, bound = Chain(params, 0, None), 6.0
    for _ in range(50):
        logits = rng.normal(0, 3, 40).astype(np.float32)
        left = {i: float(value) / 0.9 for i, value in enumerate(logits)}
        ranked = by_probability(left)
        kept = {i: left[i] for i, p in ranked if -math.log2(p) <= bound} or {ranked[0][0]: left[ranked[0][0]]}
        uniform = float(rng.random())
        expected = draw(kept, uniform)
        bound -= 0.2 * (-math.log2(softmax(kept)[expected]) - 3.0)
        assert chain.choose(logits, [], Uniforms(uniform)) == expected
        assert chain.max_surprise == pytest.approx(bound)


def test_logits_that_are_no_numbers_are_chosen_for_the_caller_to_find():
    logits = np.zeros(9, np.float32)
    logits[4] = np.nan
    assert Chain(SamplingParams(typical_p=0.5), 0, None).choose(logits, [], np.random.default_rng(0)) == 4


def test_names():
    assert SamplingParams(samplers="".join(LETTERS)).sampler_names == ORDER
    assert SamplingParams(samplers=["top-k", "typical", "temp"]).sampler_names == ("top_k", "typ_p", "temperature")
    assert not SamplingParams(temperature=0.3, top_k=4, repeat_last_n=64, xtc_threshold=0.3, dry_base=2.0).uses_chain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mirostat", 1), ("mirostat", True), ("mirostat", 3), ("samplers", ["infill"]), ("samplers", "kq"), ("samplers", [3]),
        ("samplers", ["top_k"] * 40), ("samplers", 4), ("typical_p", 1.5), ("xtc_probability", -0.1), ("dry_base", 0.5),
        ("dry_multiplier", -1), ("dry_sequence_breakers", [""]), ("dry_sequence_breakers", "x"), ("dry_sequence_breakers", ["x"] * 65),
        ("top_n_sigma", float("nan")), ("repeat_last_n", -2), ("dry_penalty_last_n", 1.5), ("dynatemp_range", "1"), ("mirostat_eta", 2),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values_are_named(field: str, value: object):
    with pytest.raises(RequestError) as raised:
        SamplingParams(**{field: value})
    assert raised.value.field == field
