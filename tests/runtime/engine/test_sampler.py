"""The sampler against transformers' logits processors and plain float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.runtime.device.host import HostOutput
from cupola.runtime.engine.request import Request, RequestSpec
from cupola.runtime.engine.sampler import (
    NO_TOKEN,
    adjust,
    apply_masks,
    choose,
    draw,
    find_candidates,
    find_nucleus,
    find_share,
    rank_logprobs,
)
from cupola.runtime.engine.sampling_params import SamplingParams

VOCAB = 3000


def row(seed: int, spread: float = 3, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, vocab).astype(np.float32)


def maxima_of(logits: np.ndarray) -> np.ndarray:
    return np.array([logits[at : at + MAXIMA_BLOCK].max() for at in range(0, len(logits), MAXIMA_BLOCK)])


def make_sequence(params: SamplingParams, prompt: list[int] = [1], output: list[int] = [], bad_words: tuple = ()):  # noqa: B006
    stops = frozenset(params.stop_token_ids or ())
    spec = RequestSpec("a", None, tuple(prompt), params, stops, frozenset(), 10**6, (0,), 0, bad_words=bad_words)
    sequence = Request(spec, None).sequences[0]
    for token_id in output:
        sequence.append(token_id, None)
    return sequence


def reference(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution in vLLM's order: temperature, min_p, top_k, top_p."""
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    scores = TemperatureLogitsWarper(float(params.temperature))(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    if params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return torch.softmax(scores, -1)[0].numpy()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    temperature=st.sampled_from([0.3, 1.0, 3.0]),
    top_k=st.sampled_from([0, -1, 1, 5, 50, VOCAB - 1, VOCAB]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_draws_follow_the_reference_distribution(seed, spread, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = row(seed, spread)
    expected = reference(logits, params)
    uniforms = (np.arange(400) + 0.5) / 400  # evenly spread, so that each token comes in proportion
    counts = np.bincount([draw(logits, params, uniform) for uniform in uniforms], minlength=VOCAB)
    assert not (counts[expected == 0]).any()
    assert np.abs(counts / 400 - expected).max() < 1 / 400 + 1e-3


def test_extreme_draws():
    logits = row(0)
    for params in (SamplingParams(), SamplingParams(top_p=0.9), SamplingParams(top_k=5), SamplingParams(temperature=100)):
        for uniform in (0.0, float(np.nextafter(1, 0))):
            assert 0 <= draw(logits, params, uniform) < VOCAB
    masked = np.full(VOCAB, -np.inf, np.float32)
    masked[7] = 1
    for uniform in (0.0, 0.5, float(np.nextafter(1, 0))):
        assert draw(masked, SamplingParams(), uniform) == 7
    assert draw(logits, SamplingParams(temperature=2e-5), 0.99) == logits.argmax()


@pytest.mark.parametrize("params", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.5}], ids=str)
def test_what_is_no_number_is_drawn_for_the_caller_to_find(params):
    logits = row(8)
    logits[17] = np.nan
    assert draw(logits, SamplingParams(**params), 0.5) == 17


def test_equal_logits_at_the_end_of_top_k_and_top_p_all_stay():
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.6)):
        assert {draw(logits, params, uniform) for uniform in np.arange(0, 1, 0.01)} == {1, 2, 3, 4}


@settings(max_examples=60)
@given(seed=st.integers(0, 99), vocab=st.sampled_from([1, 2, 255, 256, 257, 1000]), share=st.floats(0, 1, exclude_max=True))
def test_a_share_of_the_weights_ends_where_their_running_sum_passes_it(seed, vocab, share):
    weights = np.random.default_rng(seed).integers(0, 4, vocab).astype(np.float32)  # exact sums, and weights of 0
    weights[seed % vocab] += 1
    running = np.cumsum(weights, dtype=np.float64)
    found = find_share(weights, share)
    assert weights[found] > 0
    assert running[found] > share * running[-1]
    assert found == 0 or running[found - 1] <= share * running[-1]


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.9999])
@pytest.mark.parametrize("vocab", [10, 255, 256, 257, 5000])
def test_nucleus_is_the_smallest_set(top_p, vocab):
    weights = np.exp(row(1, 0.5, vocab))
    order = np.argsort(-weights)
    size = int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), top_p * weights.sum(dtype=np.float64))) + 1
    assert find_nucleus(weights, top_p).tolist() == sorted(order[:size].tolist())


@settings(max_examples=60)
@given(seed=st.integers(0, 99), vocab=st.sampled_from([1, 63, 64, 65, 128, 1000]), num_rows=st.integers(1, 20), kinds=st.integers(1, 9))
def test_the_likeliest_is_numpys_first(seed, vocab, num_rows, kinds):
    """Of few different numbers, so that many are equal, and among them perhaps some that are none: such a row has no likeliest."""
    random = np.random.default_rng(seed)
    numbers = random.choice(np.array([0.0, -0.0, 1, -1, 5, np.inf, -np.inf, np.nan], np.float32), kinds)
    values = random.choice(numbers, (num_rows, vocab))
    output = HostOutput.of(values)
    np.testing.assert_array_equal(output.block_maxima, [maxima_of(row) for row in values])
    assert output.argmax().tolist() == [[-1 if np.isnan(row).any() else int(row.argmax()) for row in values]]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 99),
    vocab=st.sampled_from([1, 100, 640, 700, VOCAB]),
    top_k=st.sampled_from([1, 2, 5, 40]),
    steps=st.sampled_from([0.01, 1.0]),  # of logits; coarse ones are often equal
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    top_p=st.sampled_from([1.0, 0.5]),
)
def test_top_k_among_candidates_draws_what_it_draws_among_all(seed, vocab, top_k, steps, min_p, top_p):
    logits = (np.rint(row(seed, 3, vocab) / steps) * steps).astype(np.float32)
    params = SamplingParams(top_k=top_k, min_p=min_p, top_p=top_p, seed=seed)
    sequence, uniform = make_sequence(params), make_sequence(params).rng.random()
    assert choose(logits, maxima_of(logits), sequence) == draw(logits, params, uniform)
    candidates = find_candidates(maxima_of(logits), top_k, vocab)
    assert candidates is None or set(np.flatnonzero(logits >= np.sort(logits)[-top_k])) <= set(candidates)
    assert (candidates is None) == (top_k >= len(maxima_of(logits)))


def test_repetition_penalty_is_transformers():
    logits, tokens = row(2), [5, 5, 9, 17, 100]
    sequence = make_sequence(SamplingParams(temperature=0, repetition_penalty=1.7), tokens[:2], tokens[2:])
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([tokens]), torch.tensor(logits)[None])[0].numpy()
    np.testing.assert_allclose(adjust(logits, sequence), expected, rtol=1e-6)


def test_presence_and_frequency_count_the_output_only():
    logits = row(3)
    sequence = make_sequence(SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25), [5, 6], [6, 6, 7])
    expected = logits.copy()
    expected[6] -= 0.5 + 2 * 0.25
    expected[7] -= 0.5 + 0.25
    np.testing.assert_allclose(adjust(logits, sequence), expected, rtol=1e-6)


@pytest.mark.parametrize("window", [0, 1, 2, 3, 5, 99])
def test_penalties_look_back_so_far(window):
    logits, tokens = row(3), [5, 9, 6, 6, 7]
    params = SamplingParams(repetition_penalty=1.7, presence_penalty=0.5, frequency_penalty=0.25, repeat_last_n=window)
    latest, expected = tokens[max(0, len(tokens) - window) :], logits.copy()
    if latest:
        expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([latest]), torch.tensor(logits)[None])[0].numpy()
    for token_id in latest:
        expected[token_id] -= 0.25 * (token_id in (6, 7))
    for token_id in set(latest) & {6, 7}:  # the output's
        expected[token_id] -= 0.5
    np.testing.assert_allclose(adjust(logits, make_sequence(params, tokens[:2], tokens[2:])), expected, rtol=1e-5)


def test_bias_and_min_tokens():
    logits = row(4)
    sequence = make_sequence(SamplingParams(temperature=0, logit_bias={5: 100, 6: -100}, min_tokens=1, stop_token_ids=[9]))
    adjusted = adjust(logits, sequence)
    assert (adjusted[5], adjusted[6], adjusted[9]) == (logits[5] + 100, logits[6] - 100, -np.inf)
    assert choose(logits, maxima_of(logits), sequence) == 5
    sequence.append(5, None)
    assert adjust(logits, sequence)[9] == logits[9]


def test_logits_are_never_changed():
    logits = row(5)
    logits.flags.writeable = False
    params = SamplingParams(temperature=0.5, top_k=9, top_p=0.5, min_p=0.1, presence_penalty=1, repetition_penalty=2, logit_bias={1: 2})
    assert 0 <= choose(logits, maxima_of(logits), make_sequence(params, [1], [2])) < VOCAB


@pytest.mark.parametrize("num_top", [0, 1, 5, VOCAB])
def test_logprobs_are_the_raw_models(num_top):
    logits = row(6)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    order = np.argsort(-exact, kind="stable")
    for token_id in (int(order[0]), int(order[3]), 11):
        entries = rank_logprobs(logits, token_id, num_top)
        assert entries[0][0] == token_id
        for token, logprob, rank in entries:
            assert logprob == pytest.approx(exact[token], abs=1e-5)
            assert order[rank - 1] == token
        assert {token for token, _, _ in entries} == {token_id, *order[:num_top].tolist()}


@pytest.mark.parametrize("vocab", [1, 8, 31, 64, 1000])
def test_masks_leave_what_they_allow_and_nothing_else(vocab):
    random = np.random.default_rng(vocab)
    logits = random.normal(size=(5, vocab)).astype(np.float32)
    logits.flags.writeable = False
    allowed = random.random((3, -(-vocab // 32) * 32)) < 0.5
    masks = [np.packbits(row, bitorder="little").tobytes() for row in allowed]
    expected = np.where(allowed[:, :vocab], logits[[4, 0, 4]], -np.inf)
    np.testing.assert_array_equal(apply_masks(logits[[4, 0, 4]], masks), expected)


def test_streams_are_each_sequences_own():
    params = SamplingParams(n=2, seed=1)
    logits = row(7)
    sequences = Request(RequestSpec("a", None, (1,), params, frozenset(), frozenset(), 99, (1,), 0), None).sequences
    first, second = ([choose(logits, maxima_of(logits), sequence) for _ in range(8)] for sequence in sequences)
    again = [choose(logits, maxima_of(logits), Request(sequences[0].request.spec, None).sequences[0])]
    assert first != second
    assert again == first[:1]


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6).map(tuple),
    output=st.lists(st.integers(0, 5), max_size=8),
)
def test_bad_words_as_transformers_bans_them(words, output):
    """There the prompt's tokens count too, so it is given none."""
    logits = row(0, vocab=8)
    sequence = make_sequence(SamplingParams(bad_words=["as the token ids say"]), [1, 2, 3], output, words)
    ids = torch.tensor([output or [7]])
    expected = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=7)(ids, torch.tensor(logits)[None])[0].numpy()
    np.testing.assert_array_equal(adjust(logits, sequence), expected)


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 2}, {"top_k": 2}, {"top_p": 0.5}, {"top_p": 0}], ids=str)
def test_only_allowed_tokens_come(params):
    """Though blocks' maxima are known, of which others are larger."""
    allowed = [5, 900, 2999]
    sequence = make_sequence(SamplingParams(allowed_token_ids=allowed, **params))
    for seed in range(30):
        logits = row(seed)
        chosen = choose(logits, maxima_of(logits), sequence)
        assert chosen in allowed
        assert not sequence.request.spec.params.greedy or chosen == max(allowed, key=lambda i: logits[i])
    sequence = make_sequence(SamplingParams(allowed_token_ids=[5, 6], **params), bad_words=((5,), (6,)))
    assert choose(row(0), None, sequence) == NO_TOKEN


def test_top_p_of_nothing_is_the_likeliest():
    logits = row(3)
    sequence = make_sequence(SamplingParams(top_p=0, temperature=100))
    assert all(choose(logits, maxima_of(logits), sequence) == logits.argmax() for _ in range(20))


def test_more_than_all_is_all():
    logits = row(4)
    assert draw(logits, SamplingParams(top_k=10**12), 0.37) == draw(logits, SamplingParams(), 0.37)
