"""Trees of drafted tokens: a branch is used where it brings tokens sooner."""

from __future__ import annotations

import pytest

from cupola.runtime.engine.proposers.proposer import NO_DRAFT, Context, Draft
from cupola.runtime.engine.proposers.several import KINDS, SeveralProposers
from cupola.runtime.engine.token_tree import choose_branch, num_alike


def test_what_chains_have_in_common():
    assert num_alike([1, 2, 3], (1, 2, 4)) == 2
    assert num_alike([1, 2], [1, 2, 3]) == 2
    assert num_alike([], [1]) == 0


def test_branches_that_pay_are_used_as_far_as_they_do():
    gains = [0.0, 0.5, 0.3, 0.01]  # the first token is the trunk's, too
    assert choose_branch(gains, 2.0, 3, [1.0] * 20) == 4
    assert choose_branch(gains, 2.0, 3, [1.0 + 0.03 * n for n in range(20)]) == 3
    assert choose_branch(gains, 2.0, 3, [1.0 + n for n in range(20)]) == 0
    assert choose_branch(gains, 2.0, 3, [1.0] * 7) == 2  # steps of no more than 6 tokens
    assert choose_branch(gains, 2.0, 3, [1.0] * 4) == 0


class Says:
    is_free = True
    doubts = False

    def __init__(self, *token_ids: int) -> None:
        self.draft, self.forgotten = Draft(token_ids, 3) if token_ids else NO_DRAFT, 0

    def propose(self, contexts: list[Context]) -> list[Draft]:
        return [self.draft] * len(contexts)

    def forget(self, context: Context) -> None:
        self.forgotten += 1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(1, 2), (3,)], Draft((1, 2), 3, (Draft((3,), 3 + KINDS),))),
        ([(), (3,)], Draft((3,), 3 + KINDS)),
        ([(), ()], NO_DRAFT),
    ],
)
def test_guesses_of_several_proposers_stand_side_by_side(said, expected):
    proposers = [Says(*token_ids) for token_ids in said]
    several, context = SeveralProposers(*proposers), Context("a", [1], 1, b"", 4)
    assert several.propose([context, context]) == [expected] * 2
    several.forget(context)
    assert [proposer.forgotten for proposer in proposers] == [1, 1]
