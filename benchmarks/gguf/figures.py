"""The figures of the comparison: of windows of text, and of greedy answers. Definitions are those of `cupola eval`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
ROWS_AT_ONCE = 64  # of logits: copies of a whole window would be large


@dataclass(frozen=True)
class Scores:
    """Of the scored tokens of all windows: −log p; and beside a reference KL(reference || engine) and whether both have the same top."""

    losses: Float64
    divergences: Float64
    same_top: Float64

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(self.losses.mean())


@dataclass(frozen=True)
class Difference:
    """The first token of an answer that differs from llama.cpp's, and by how much each prefers its own to the other's, in logits.

    `float32` is by how much float32 prefers the engine's, less than 0 if llama.cpp's; NaN where a token isn't among its likeliest.
    """

    prompt: int
    place: int
    engine: float
    llama_cpp: float
    float32: float


def score(logits: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Scores:
    """Scores logits [windows, positions, vocabulary] against the tokens that follow, [windows, positions]."""
    parts = []
    for window in range(len(targets)):
        for start in range(0, targets.shape[1], ROWS_AT_ONCE):
            rows = np.s_[window, start : start + ROWS_AT_ONCE]
            own, other = _log_softmax(logits[rows]), _log_softmax(reference[rows])
            chosen = -own[np.arange(len(own)), targets[rows]]
            parts.append(
                [chosen, (np.exp(other) * (other - own)).sum(axis=1, dtype=np.float64), own.argmax(axis=1) == other.argmax(axis=1)]
            )
    return Scores(*(np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True)))


def perplexity_ratio(scores: Scores, other: Scores) -> tuple[float, float]:
    """Perplexity divided by another's on the same tokens, and its standard error."""
    differences = scores.losses - other.losses
    ratio = math.exp(differences.mean())
    return ratio, ratio * float(differences.std(ddof=1)) / math.sqrt(len(differences))


def differences(answers: Sequence[Any], llama_cpp: Sequence[Any], float32: Sequence[Any]) -> Iterator[Difference]:
    """The places where answers leave llama.cpp's; float32's steps follow llama.cpp's tokens, so that all three have seen the same."""
    for index, (own, other, exact) in enumerate(zip(answers, llama_cpp, float32, strict=True)):
        place = next((at for at, (a, b) in enumerate(zip(own, other, strict=True)) if a["token"] != b["token"]), None)
        if place is not None:
            tokens = own[place]["token"], other[place]["token"]
            margins = (_margin(own[place], *tokens), _margin(other[place], *reversed(tokens)), _margin(exact[place], *tokens))
            yield Difference(index, place, *margins)


def agreement(answers: Sequence[Any], llama_cpp: Sequence[Any]) -> int:
    """How many of all tokens come before the first difference."""
    pairs = zip(answers, llama_cpp, strict=True)
    places = ([a["token"] != b["token"] for a, b in zip(own, other, strict=True)] for own, other in pairs)
    return sum(place.index(True) if True in place else len(place) for place in places)


def _margin(step: Any, token: int, other: int) -> float:
    found = dict(zip(step["likeliest"], step["logits"], strict=True))
    return float(found.get(token, math.nan) - found.get(other, math.nan))


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """In float32, but for the sums: rounding moves a divergence by less than a millionth."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return result
