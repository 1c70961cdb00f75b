"""The time that steps of the model take by their number of tokens, learned from the steps that pass."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

KEPT = 5  # measurements of a size, of which the least counts: what else the machine does makes a step longer, and none shorter
FORGOTTEN = 256  # measurements of any size after which one that did not come again is tried anew


class StepCosts:
    """Seconds a step, by its tokens.

    What a step of a number of tokens takes is between the times of the next smaller and the next larger known one; above the largest it is
    taken to cost no more than that, so that it is tried. The first step of a size is not measured: it makes room for itself. One that was
    measured once is taken to cost no more than larger ones, for it may have met something else.

    Args:
        in_proportion: whether sizes outside of those known are taken to cost in proportion to the nearest: what is done token by token.
    """

    def __init__(self, *, in_proportion: bool = False) -> None:
        self._in_proportion = in_proportion
        self._seconds: dict[int, deque[float]] = {}
        self._seen: dict[int, int] = {}  # when, in measurements
        self._count = 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes in that a step of so many tokens took so long."""
        self._count += 1
        if num_tokens not in self._seen or self._is_forgotten(num_tokens):
            self._seconds.pop(num_tokens, None)
        else:
            self._seconds.setdefault(num_tokens, deque(maxlen=KEPT)).append(seconds)
        self._seen[num_tokens] = self._count

    def table(self, most: int) -> list[float] | None:
        """Seconds of steps of 0 to `most` tokens; None while nothing is known."""
        known: list[tuple[int, float]] = []  # from the largest on
        for size in sorted((n for n in self._seconds if not self._is_forgotten(n)), reverse=True):
            seconds = min(self._seconds[size])
            known.append((size, seconds if len(self._seconds[size]) > 1 or not known else min(seconds, known[-1][1])))
        if not known:
            return None
        known.reverse()
        if self._in_proportion:
            size, seconds = known[-1]
            known = [(0, 0.0), *known, *([(most, seconds * most / size)] if most > size else [])]
        found = [known[0][1]] * (known[0][0] + 1)
        for (low, low_seconds), (high, high_seconds) in pairwise(known):
            slope = (high_seconds - low_seconds) / (high - low)
            found += [low_seconds + slope * (n - low) for n in range(low + 1, high + 1)]
        return (found + [found[-1]] * (most + 1 - len(found)))[: most + 1]

    def _is_forgotten(self, num_tokens: int) -> bool:
        return self._count - self._seen[num_tokens] > FORGOTTEN
