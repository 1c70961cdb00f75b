"""The tokens that may still be drawn, and the samplers that drop some of them or change their logits, as llama.cpp defines them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]


class Candidates:
    """Tokens and their logits. `token_ids` are in ascending order."""

    def __init__(self, logits: npt.NDArray[np.floating]) -> None:
        self.token_ids = np.flatnonzero(logits > -np.inf)
        self.logits: Float64 = logits[self.token_ids].astype(np.float64)

    def __len__(self) -> int:
        return len(self.token_ids)

    def keep(self, which: Ids | npt.NDArray[np.bool_]) -> None:
        """Drops all others; `which` are indices or a mask."""
        kept: Ids = np.flatnonzero(which) if which.dtype == bool else np.sort(which).astype(np.intp)
        self.token_ids, self.logits = self.token_ids[kept], self.logits[kept]

    def places_of(self, token_ids: npt.NDArray[np.int64]) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Where tokens are, and which of them are there at all."""
        places = np.searchsorted(self.token_ids, token_ids)
        places = np.minimum(places, len(self) - 1)
        return places, self.token_ids[places] == token_ids

    def probabilities(self) -> Float64:
        """The softmax of the logits."""
        weights = np.exp(self.logits - self.logits.max())
        return weights / weights.sum()


def keep_top_k(candidates: Candidates, top_k: int) -> None:
    """The `top_k` largest logits, and what equals the last of them; all if it is 0 or less."""
    if 0 < top_k < len(candidates):
        candidates.keep(candidates.logits >= np.partition(candidates.logits, -top_k)[-top_k])


def keep_top_p(candidates: Candidates, top_p: float) -> None:
    """The most likely tokens that have this much probability together."""
    if top_p < 1:
        _keep_first(candidates, np.argsort(-candidates.logits, kind="stable"), top_p, at_least=True)


def keep_min_p(candidates: Candidates, min_p: float) -> None:
    """The tokens with at least `min_p` times the most likely one's probability."""
    if min_p > 0:
        candidates.keep(candidates.logits >= candidates.logits.max() + np.log(min_p))


def keep_typical(candidates: Candidates, typical_p: float) -> None:
    """Locally typical sampling (arXiv:2202.00666): tokens whose surprise is nearest to the entropy, more than `typical_p` together."""
    if typical_p < 1:
        probabilities = candidates.probabilities()
        surprises = -np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        entropy = float(probabilities @ surprises)
        _keep_first(candidates, np.argsort(np.abs(surprises - entropy), kind="stable"), typical_p, at_least=False)


def keep_top_n_sigma(candidates: Candidates, n: float) -> None:
    """Top-n-sigma (arXiv:2411.07641): the tokens within `n` standard deviations of the largest logit."""
    if n > 0:
        candidates.keep(candidates.logits >= candidates.logits.max() - n * candidates.logits.std())


def exclude_top_choices(candidates: Candidates, threshold: float) -> None:
    """XTC: of the tokens with at least `threshold` of the probability, drops all but the least likely."""
    if threshold > 0.5:
        return
    likely = np.flatnonzero(candidates.probabilities() >= threshold)
    if len(likely) > 1:
        kept = np.ones(len(candidates), bool)
        kept[likely] = False
        kept[likely[np.argmin(candidates.logits[likely])]] = True
        candidates.keep(kept)


def apply_temperature(candidates: Candidates, temperature: float) -> None:
    """Divides the logits; at 0 only the largest is kept."""
    if temperature <= 0:
        candidates.keep(np.array([candidates.logits.argmax()]))
    else:
        candidates.logits /= temperature


def choose_temperature(candidates: Candidates, temperature: float, spread: float, exponent: float) -> float:
    """Dynamic temperature: `spread` below `temperature` (at least 0) where one token has all probability, above it where all are equal."""
    if spread <= 0 or len(candidates) < 2:
        return temperature
    probabilities = candidates.probabilities()
    entropy = -float(np.sum(probabilities * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))))
    lowest, highest = max(0.0, temperature - spread), temperature + spread
    return lowest + (highest - lowest) * max(0.0, entropy / np.log(len(candidates))) ** exponent


def _keep_first(candidates: Candidates, order: Ids, share: float, *, at_least: bool) -> None:
    """The first tokens in `order` that have at least, or more than, `share` of the probability together."""
    sums = np.cumsum(candidates.probabilities()[order])
    candidates.keep(order[: int(sums.searchsorted(share, side="left" if at_least else "right")) + 1])
