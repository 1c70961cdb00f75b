"""DRY: what would make a repetition longer costs the more, the longer it is already (p-e-w's sampler, as llama.cpp has it)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cupola.runtime.engine.samplers.candidates import Candidates
from cupola.runtime.engine.samplers.params import ChainParams

MAX_REPEAT = 4096  # tokens of a repetition that are looked at
MAX_LOG_PENALTY = 88.0  # the logarithm of the largest factor: float32 holds no larger one
Lengths = npt.NDArray[np.int32]


class Repetitions:
    """How much of a sequence's end stands elsewhere in it too, kept up to date token by token.

    Args:
        breakers: the texts over which no repetition goes.
        bytes_of: what a token writes; None if no token writes anything.
    """

    def __init__(self, breakers: Sequence[str], bytes_of: Callable[[int], bytes] | None) -> None:
        self._breakers = [text.encode() for text in breakers] if bytes_of is not None else []
        self._longest = max(map(len, self._breakers), default=0)
        self._bytes_of = bytes_of
        self._tokens = np.empty(0, np.int64)
        self._lengths: Lengths = np.empty(0, np.int32)  # of the common suffix of the tokens up to each and of all of them
        self.num_since_breaker = 0  # tokens

    def update(self, token_ids: Sequence[int]) -> None:
        """Takes in the sequence, of which the tokens that were known have not changed."""
        num_known = len(self._tokens)
        if num_known == 0:
            self._tokens, self._lengths = np.array(token_ids, np.int64), common_suffixes(token_ids)
            self._find_breaker(token_ids, max(0, len(token_ids) - MAX_REPEAT))
            return
        for n in range(num_known, len(token_ids)):
            following = np.append(self._lengths[:-1] + 1, 0).astype(np.int32)  # of each token but the first, if it equals the new one
            same = self._tokens[1:] == token_ids[n]
            lengths = np.concatenate([[np.int32(self._tokens[0] == token_ids[n])], np.where(same, following[:-1], 0), [n + 1]])
            self._lengths = lengths.astype(np.int32)
            self._tokens = np.append(self._tokens, token_ids[n])
        self._find_breaker(token_ids, num_known)

    def penalties(self, params: ChainParams) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Tokens, in ascending order, and what to subtract from their logits."""
        num_tokens = len(self._tokens)
        start = 0 if params.dry_penalty_last_n < 0 else max(0, num_tokens - params.dry_penalty_last_n)
        before = np.arange(start, num_tokens - 1)
        lengths = np.minimum(np.minimum(self._lengths[start : num_tokens - 1], before - start + 1), min(self.num_since_breaker, MAX_REPEAT))
        found = before[lengths >= max(1, params.dry_allowed_length)]
        token_ids, places = np.unique(self._tokens[found + 1], return_inverse=True)
        longest = np.zeros(len(token_ids))
        np.maximum.at(longest, places, lengths[found - start])
        exponents = (longest - params.dry_allowed_length) * math.log(params.dry_base)
        return token_ids, params.dry_multiplier * np.exp(np.minimum(exponents, MAX_LOG_PENALTY))

    def _find_breaker(self, token_ids: Sequence[int], first: int) -> None:
        """Counts the tokens after the last one, of those from `first` on, in which a breaker ends."""
        for n in range(len(token_ids) - 1, first - 1, -1):
            if self._breaks(token_ids, n):
                self.num_since_breaker = len(token_ids) - 1 - n
                return
        self.num_since_breaker += len(token_ids) - first

    def _breaks(self, token_ids: Sequence[int], n: int) -> bool:
        if self._bytes_of is None or not self._breakers:
            return False
        new = self._bytes_of(token_ids[n])
        text, i = new, n
        while i > 0 and len(text) < len(new) + self._longest - 1:
            i -= 1
            text = self._bytes_of(token_ids[i]) + text
        return any(text.find(breaker, max(0, len(text) - len(new) - len(breaker) + 1)) >= 0 for breaker in self._breakers)


def common_suffixes(token_ids: Sequence[int]) -> Lengths:
    """Of each token, how many tokens up to it equal the last ones (the Z function, backwards); time and space are linear."""
    backwards = token_ids[::-1]
    n = len(backwards)
    lengths, left, right = [n] + [0] * (n - 1), 0, 0
    for i in range(1, n):
        length = min(right - i, lengths[i - left]) if i < right else 0
        while i + length < n and backwards[length] == backwards[i + length]:
            length += 1
        if i + length > right:
            left, right = i, i + length
        lengths[i] = length
    return np.array(lengths[::-1], np.int32)


def apply_dry(candidates: Candidates, params: ChainParams, repetitions: Repetitions) -> None:
    """Subtracts what the repetitions cost."""
    token_ids, penalties = repetitions.penalties(params)
    if len(token_ids):
        places, there = candidates.places_of(token_ids)
        candidates.logits[places[there]] -= penalties[there]
