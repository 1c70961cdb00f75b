"""Drafts of a small model: its own likeliest tokens, whatever became of those it drafted before."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.runtime.device import host
from cupola.runtime.engine.proposers import draft_model as module
from cupola.runtime.engine.proposers.draft_model import DraftModelProposer, share_of_largest
from cupola.runtime.engine.proposers.proposer import Context
from cupola.runtime.engine.sampling_params import SamplingParams
from tests.runtime.engine.speculating import speculate
from tests.runtime.fakes import CONTEXT, MODEL, VOCAB, FakeExecutor, fake_logits, greedy_reference, make_engine, run_all


class Half(FakeExecutor):
    """Says what the large model says, most of the time."""

    def _row(self, batch, row):
        logits = super()._row(batch, row)
        return np.roll(logits, int(batch.tokens[row]) % 3 == 0)


def propose(proposer: DraftModelProposer, sequences: dict[str, list[int]], most: int) -> list[list[int]]:
    drafts = proposer.propose([Context(name, tokens, 1, b"", most) for name, tokens in sequences.items()])
    proposer.check_integrity()
    return [list(draft.token_ids) for draft in drafts]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), windows=st.sampled_from([(0,), (0, 8), (5,)]), num_blocks=st.integers(12, 40))
def test_the_likeliest_tokens_of_every_sequence(seed, windows, num_blocks):
    """Sequences grow by what was drafted, by something else, or by much more; they come and go, and blocks run out."""
    random, sequences = np.random.default_rng(seed), dict[str, list[int]]()
    executor = FakeExecutor(num_blocks, windows=windows)
    proposer, num_right = DraftModelProposer(executor, MODEL, executor.kv, VOCAB), 0
    for turn in range(12):
        if len(sequences) < 5:
            sequences[str(turn)] = random.integers(0, VOCAB, random.integers(1, 30)).tolist()
        asked = {name: tokens for name, tokens in sequences.items() if random.random() < 0.7}
        most = int(random.integers(1, 8))
        for name, draft in zip(asked, propose(proposer, asked, most), strict=True):
            tokens = sequences[name]
            if draft:
                assert draft == greedy_reference(tokens, most, stop=False, window=max(windows) if 0 not in windows else 0)
                num_right += 1
            tokens += draft[: random.integers(most + 1)] if random.random() < 0.7 else []
            tokens += random.integers(0, VOCAB, random.integers(1, 3)).tolist()
        for name in [name for name, tokens in sequences.items() if len(tokens) > CONTEXT or random.random() < 0.1]:
            proposer.forget(Context(name, sequences.pop(name), 1, b"", 1))
            proposer.check_integrity()
    assert num_right
    for name in list(sequences):
        proposer.forget(Context(name, [], 1, b"", 1))
    proposer.check_integrity()
    proposer._states.check_idle()


def test_long_prompts_come_in_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    monkeypatch.setattr(module, "CATCH_UP", 4)
    executor, prompt = FakeExecutor(64), list(range(30))
    proposer = DraftModelProposer(executor, MODEL, executor.kv, VOCAB)
    assert propose(proposer, {"a": prompt}, 3) == [greedy_reference(prompt, 3, stop=False)]
    assert executor.num_tokens == 30 + 2
    assert propose(proposer, {"a": [*prompt, *greedy_reference(prompt, 4, stop=False)]}, 1)
    assert executor.num_tokens == 30 + 2 + 2  # the last drafted token and the one after it


@settings(max_examples=25)
@given(prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=4), least=st.floats(0, 1))
def test_a_draft_ends_where_it_is_too_unsure(prompts, least):
    """By the chances of all its tokens together, learned by how sure the model was, which it says. Others' drafts go on."""
    executor = FakeExecutor(200)
    proposer = DraftModelProposer(executor, MODEL, executor.kv, VOCAB)

    def chance(given: float) -> float:
        return min(1, 2 * given)

    contexts = [Context(str(i), tokens, 1, b"", 7, None, least * (i + 1) / len(prompts), chance) for i, tokens in enumerate(prompts)]
    with mock.patch.object(host, "MAXIMA_BLOCK", 1):
        drafts = proposer.propose(contexts)
    for context, draft in zip(contexts, drafts, strict=True):
        likeliest = greedy_reference(list(context.token_ids), 7, stop=False)
        logits = [fake_logits([*context.token_ids, *likeliest[:i]]) for i in range(7)]
        probabilities = [np.exp(row.max() - np.logaddexp.reduce(row.astype(np.float64))) for row in logits]
        num_sure = next((i for i, joint in enumerate(np.cumprod([*map(chance, probabilities)])) if joint < context.least), 6) + 1
        assert list(draft.token_ids) == likeliest[:num_sure]
        np.testing.assert_allclose(draft.chances, probabilities[:num_sure], rtol=1e-5)
    proposer.check_integrity()


def test_how_sure_a_model_is_by_its_largest_logits():
    assert share_of_largest(np.float32([2.0])) == 1
    assert share_of_largest(np.float32([0.0, 0.0, -np.inf, 0.0])) == pytest.approx(1 / 3)
    assert share_of_largest(np.float32([1.0, np.nan])) == share_of_largest(np.float32([np.inf, 1.0])) == 0


def test_who_does_not_fit_gets_no_draft():
    executor = FakeExecutor(64)
    proposer = DraftModelProposer(executor, MODEL, executor.kv, VOCAB)
    assert propose(proposer, {"a": [1] * (CONTEXT - 2), "b": [1, 2]}, 3)[0] == []
    small = FakeExecutor(3)
    assert propose(DraftModelProposer(small, MODEL, small.kv, VOCAB), {"a": [1] * 20}, 3) == [[]]


def test_tokens_beyond_the_large_models_vocabulary_are_none():
    executor = FakeExecutor(64)
    token = greedy_reference([1, 2], 1)[0]
    assert propose(DraftModelProposer(executor, MODEL, executor.kv, token), {"a": [1, 2]}, 3) == [[]]
    assert int(fake_logits([1, 2]).argmax()) == token


def test_what_failed_is_computed_again():
    executor = FakeExecutor(64)
    proposer = DraftModelProposer(executor, MODEL, executor.kv, VOCAB)
    assert propose(proposer, {"a": [1, 2, 3]}, 2)
    executor.num_failures = 1
    with pytest.raises(RuntimeError, match="on fire"):
        propose(proposer, {"a": [1, 2, 3, 4]}, 2)
    assert propose(proposer, {"a": [1, 2, 3, 4]}, 2) == [greedy_reference([1, 2, 3, 4], 2, stop=False)]


def test_an_engine_with_a_small_model(monkeypatch):
    small = Half(200)
    engine = speculate(make_engine(), DraftModelProposer(small, MODEL, small.kv, VOCAB), monkeypatch)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5, 3, 5]]
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    outputs = run_all(engine)
    for i, prompt in enumerate(prompts):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 30, stop=False)
    assert 20 < engine.stats().num_accepted_tokens < 87
    engine.speculation.proposer._states.check_idle()
