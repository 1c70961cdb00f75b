"""Drafts of one sequence as a tree of two chains, both of which the model looks at in the same step.

A branch is a chain of its own: it begins with the sequence's last token, as the trunk does, and repeats what both have in common; the
attention of each sees the keys before it and its own, in order. So its rows have the bits of plain decoding, which they would not have if
one chain's keys stood among the other's, hidden by a mask: sums of the weights would be cut otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import NamedTuple

MIN_GAIN = 1.02  # by which tokens must come faster, as it is expected, for a branch to be used


class TokenTree(NamedTuple):
    """Tokens that may come next: the trunk, and chains that may come in its place."""

    trunk: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...] = ()


def num_alike(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two chains begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def choose_branch(gains: Sequence[float], total: float, count: int, costs: Sequence[float]) -> int:
    """How many tokens of a branch to use, so that the most tokens a second are expected; 0 is none.

    Args:
        gains: of each token of the branch, how many it brings: nothing where the trunk says the same.
        total: tokens that a step brings without the branch.
        count: tokens that it computes for that; the branch takes one more than it has.
        costs: seconds of a step by its tokens, up to the most that it may have.
    """
    best, best_rate = 0, MIN_GAIN * total / costs[count]
    for length, gained in enumerate(accumulate(gains), 1):
        if count + 1 + length >= len(costs):
            break
        if (total + gained) / costs[count + 1 + length] > best_rate:
            best, best_rate = length, (total + gained) / costs[count + 1 + length]
    return best
