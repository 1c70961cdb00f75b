"""Prompt lookup: what followed the last few tokens where they stood before, in the prompt or the output (arXiv:2304.04487)."""

from __future__ import annotations

from collections.abc import Sequence

from cupola.runtime.engine.proposers.proposer import NO_DRAFT, Context, Draft

LONGEST, SHORTEST = 4, 2  # tokens that must be equal; the longest that are found count


class NGramProposer:
    """Looks the end of each sequence up in the sequence itself. The latest place counts."""

    is_free = True
    doubts = False

    def __init__(self) -> None:
        self._indices: dict[str, NGramIndex] = {}

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """As `Proposer`."""
        return [self._indices.setdefault(context.name, NGramIndex()).propose(context.token_ids, context.most) for context in contexts]

    def forget(self, context: Context) -> None:
        """As `Proposer`."""
        self._indices.pop(context.name, None)


class NGramIndex:
    """The latest place of every n-gram of one sequence."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # of n-grams of all lengths, the index of the token after the latest
        self._num_known = 0  # tokens, whose n-grams are there but for those that end with the last one

    def propose(self, token_ids: Sequence[int], most: int) -> Draft:
        """At most `most` tokens that followed the longest n-gram at the end of the tokens, where it stood before."""
        for end in range(max(1, self._num_known), len(token_ids)):
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(token_ids[end - n : end])] = end
        self._num_known = len(token_ids)
        for n in range(min(LONGEST, len(token_ids)), SHORTEST - 1, -1):
            start = self._ends.get(tuple(token_ids[len(token_ids) - n :]))
            if start is not None:
                return Draft(tuple(_repeat(token_ids, start, most)), n)
        return NO_DRAFT


def _repeat(token_ids: Sequence[int], start: int, count: int) -> list[int]:
    """`count` tokens from `start` on; where the tokens end, they go on from `start` again: what repeats itself may go on doing so."""
    found = list(token_ids[start : start + count])
    while len(found) < count:
        found += found[: count - len(found)]
    return found
