"""Prompt lookup against a search through the whole sequence."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cupola.runtime.engine.proposers.ngram import LONGEST, SHORTEST, NGramProposer
from cupola.runtime.engine.proposers.proposer import Context


def looked_up(tokens: list[int], most: int) -> list[int]:
    """The tokens after the latest of the longest matches; what is beyond the end repeats itself."""
    for n in range(LONGEST, SHORTEST - 1, -1):
        for start in range(len(tokens) - n - 1, -1, -1):
            if len(tokens) > n and tokens[start : start + n] == tokens[-n:]:
                found = tokens[start + n :]
                return (found * most)[:most]
    return []


@given(tokens=st.lists(st.integers(0, 2), min_size=2, max_size=60), first=st.integers(1, 30), most=st.integers(1, 9))
def test_as_by_a_search(tokens, first, most):
    proposer, sequence = NGramProposer(), tokens[:first]
    for end in range(first, len(tokens) + 1):
        sequence += tokens[len(sequence) : end]
        (draft,) = proposer.propose([Context("a", sequence, first, b"", most)])
        assert list(draft.token_ids) == looked_up(sequence, most)
        if draft.token_ids:
            assert sequence[-draft.evidence :] in [sequence[i : i + draft.evidence] for i in range(len(sequence) - draft.evidence)]


def test_sequences_are_apart_and_forgotten():
    proposer = NGramProposer()
    contexts = [Context("a", [1, 2, 3, 1, 2], 3, b"", 2), Context("b", [1, 2], 1, b"", 2)]
    assert [draft.token_ids for draft in proposer.propose(contexts)] == [(3, 1), ()]
    for context in contexts:
        proposer.forget(context)
    assert not proposer._indices
