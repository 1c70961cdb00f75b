"""The samplers of one sequence, in the order that its request gives, and the draw at their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from cupola.runtime.device.interface import Float32
from cupola.runtime.engine.samplers import candidates as samplers
from cupola.runtime.engine.samplers.candidates import Candidates
from cupola.runtime.engine.samplers.dry import Repetitions, apply_dry
from cupola.runtime.engine.samplers.penalties import find_seen, repetition_factors
from cupola.runtime.engine.sampling_params import SamplingParams


class Chain:
    """Chooses a sequence's tokens, and keeps what the samplers must know of those before.

    Args:
        num_prompt_tokens: where the output begins.
        bytes_of: what a token writes; None if there is no tokenizer.
    """

    def __init__(self, params: SamplingParams, num_prompt_tokens: int, bytes_of: Callable[[int], bytes] | None) -> None:
        self.params, self.num_prompt_tokens = params, num_prompt_tokens
        self._samplers = [SAMPLERS[name] for name in params.sampler_names]
        self.repetitions = Repetitions(params.dry_sequence_breakers, bytes_of)
        self.max_surprise = 2 * params.mirostat_tau  # bits; mirostat's mu

    def choose(self, logits: Float32, token_ids: Sequence[int], rng: np.random.Generator) -> int:
        """The token after `token_ids`, from logits f32 [vocab], which are never changed. Where a logit is NaN it is chosen."""
        if not np.isfinite(logits.max()):
            return int(logits.argmax())
        candidates = Candidates(logits)
        for apply in self._samplers:
            apply(self, candidates, token_ids, rng)
        shares = np.cumsum(candidates.probabilities())
        at = min(int(shares.searchsorted(rng.random() * shares[-1], side="right")), int(shares.searchsorted(shares[-1])))
        if self.params.mirostat:
            self._correct(-float(np.log2(candidates.probabilities()[at])))
        return int(candidates.token_ids[at])

    def _correct(self, surprise: float) -> None:
        self.max_surprise -= self.params.mirostat_eta * (surprise - self.params.mirostat_tau)


def _penalties(chain: Chain, candidates: Candidates, token_ids: Sequence[int], _rng: np.random.Generator) -> None:
    params = chain.params
    if not params.penalized:
        return
    seen = find_seen(params, token_ids, chain.num_prompt_tokens)
    places, there = candidates.places_of(seen.repeated)
    places = places[there]
    candidates.logits[places] *= repetition_factors(candidates.logits[places], params.repetition_penalty)
    places, there = candidates.places_of(seen.counted)
    candidates.logits[places[there]] -= (params.presence_penalty + params.frequency_penalty * seen.counts)[there]


def _dry(chain: Chain, candidates: Candidates, token_ids: Sequence[int], _rng: np.random.Generator) -> None:
    if chain.params.dry_multiplier and chain.params.dry_penalty_last_n:
        chain.repetitions.update(token_ids)
        apply_dry(candidates, chain.params, chain.repetitions)


def _xtc(chain: Chain, candidates: Candidates, _token_ids: Sequence[int], rng: np.random.Generator) -> None:
    if chain.params.xtc_probability and rng.random() < chain.params.xtc_probability:
        samplers.exclude_top_choices(candidates, chain.params.xtc_threshold)


def _temperature(chain: Chain, candidates: Candidates, _token_ids: Sequence[int], _rng: np.random.Generator) -> None:
    p = chain.params
    spread = 0.0 if p.mirostat else p.dynatemp_range
    samplers.apply_temperature(candidates, samplers.choose_temperature(candidates, p.temperature, spread, p.dynatemp_exponent))


def _mirostat(chain: Chain, candidates: Candidates, _token_ids: Sequence[int], _rng: np.random.Generator) -> None:
    """Mirostat 2 (arXiv:2007.14966): drops what is more surprising than the surprise that is allowed now, but for the most likely token."""
    probabilities = candidates.probabilities()
    allowed = -np.log2(np.maximum(probabilities, np.finfo(np.float64).tiny)) <= chain.max_surprise
    allowed[probabilities.argmax()] = True
    candidates.keep(allowed)


Apply: TypeAlias = "Callable[[Chain, Candidates, Sequence[int], np.random.Generator], None]"  # numpy.random comes when somebody draws
SAMPLERS: Mapping[str, Apply] = {
    "penalties": _penalties,
    "dry": _dry,
    "top_n_sigma": lambda chain, candidates, *_: samplers.keep_top_n_sigma(candidates, chain.params.top_n_sigma),
    "top_k": lambda chain, candidates, *_: samplers.keep_top_k(candidates, chain.params.top_k),
    "typ_p": lambda chain, candidates, *_: samplers.keep_typical(candidates, chain.params.typical_p),
    "top_p": lambda chain, candidates, *_: samplers.keep_top_p(candidates, chain.params.top_p),
    "min_p": lambda chain, candidates, *_: samplers.keep_min_p(candidates, chain.params.min_p),
    "xtc": _xtc,
    "temperature": _temperature,
    "mirostat": _mirostat,
}
