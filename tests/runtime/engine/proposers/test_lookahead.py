"""Lookahead: guesses follow what the model said before, in the text and after its own guesses."""

from __future__ import annotations

from cupola.runtime.engine.proposers.lookahead import WINDOW, LookaheadProposer
from cupola.runtime.engine.proposers.proposer import Context, Explorer
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.speculation import Speculation
from tests.runtime.fakes import VOCAB, greedy_reference, make_engine, run_all


def context(*token_ids: int, most: int = 15) -> Context:
    return Context("a", token_ids, 2, b"", most)


def guess(proposer: LookaheadProposer, *token_ids: int, most: int = 15) -> tuple[int, ...]:
    return proposer.propose([context(*token_ids, most=most)])[0].token_ids


def test_guesses_follow_the_text():
    proposer = LookaheadProposer()
    assert isinstance(proposer, Explorer)
    assert guess(proposer, 1, 2, 3, 4, 1, 2)[:4] == (3, 4, 1, 2)
    assert len(guess(proposer, 1, 2, 3, 4, 1, 2)) == WINDOW
    assert len(guess(proposer, 1, 2, 3, 4, 1, 2, most=2)) == 2


def test_what_the_model_says_after_a_guess_is_the_next_guess():
    proposer = LookaheadProposer()
    text = (5, 6, 7)
    draft = guess(proposer, *text)
    assert set(draft) <= set(text)  # nothing is known yet
    proposer.hear("a", text, draft, [20, 21, 22, 23, 24])
    assert guess(proposer, *text, 20) == (21, 22, 23, 24)  # the places behind the token that came: the window goes on
    proposer.hear("a", (*text, 20), (21, 22, 23, 24), [9, 30, 31, 32, 33])
    assert guess(proposer, *text, 20, 9, 21, 22)[:2] == (31, 33)  # as it was after 21 and 22, then the window's place
    proposer.forget(context(*text))
    assert set(guess(proposer, *text)) <= set(text)


def test_wrong_guesses_are_made_in_every_step_and_change_nothing(monkeypatch):
    engine = make_engine()
    engine.speculation = Speculation(LookaheadProposer(), VOCAB)
    reference = greedy_reference([3, 1, 4], 40, stop=False)
    engine.add_request("a", [3, 1, 4], SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    assert run_all(engine)["a"].outputs[0].token_ids == reference
    stats = engine.stats()
    assert stats.num_steps == 40 - stats.num_accepted_tokens and stats.num_draft_tokens > 2 * stats.num_steps
