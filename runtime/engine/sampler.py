"""From logits to tokens. Each sequence draws from a random stream of its own, one number a token, so that what runs
beside it never changes its samples.

The order is vLLM's: log-probabilities are the raw model's; then what a grammar forbids, `allowed_token_ids`, bad words, logit bias,
stop tokens before `min_tokens`, penalties; the greedy choice; temperature, min_p, top_k, top_p, a draw. A request that asks for
samplers of llama.cpp has all but what restricts tokens in llama.cpp's order (`samplers/`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK
from cupola.runtime.device.interface import Float32, StepOutput
from cupola.runtime.engine.grammar_masks import Failed, Outcome
from cupola.runtime.engine.request import RankedLogprobs, Request, Sequence
from cupola.runtime.engine.samplers.penalties import find_seen, repetition_factors
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.step import Chunk, Step
from cupola.runtime.errors import EngineError
from cupola.runtime.structured.grammar_process import Allowed

WITHIN_BLOCK = np.arange(MAXIMA_BLOCK)
SUMMANDS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, np.float32(0), np.float32(-np.inf)
)
NO_TOKEN = -1
STRETCH = 256  # weights that are summed together first when a token is drawn
NUCLEUS_WEIGHTS = (2**-5, 2**-10, 2**-15, 0)  # beside the heaviest: how light what top_p sorts may be, and then, if that was too little


class SampledToken(NamedTuple):
    """A new token of a sequence."""

    sequence: Sequence
    token_id: int
    logprobs: RankedLogprobs | None


class PromptScores(NamedTuple):
    """Scores of some consecutive prompt tokens: log-probabilities of the prompt tokens after them, raw logits."""

    request: Request
    logprobs: tuple[RankedLogprobs, ...]
    logits: Float32 | None


@dataclass(frozen=True)
class SequenceEnd:
    """A sequence that ends without a further token: its grammar is complete, or (`error`) no token may come."""

    sequence: Sequence
    error: str | None


class Samples(NamedTuple):
    """All that a step's logits gave, in order. What `delayed` sequences say next is chosen in a later step."""

    tokens: SequenceOf[SampledToken]
    prompt_scores: SequenceOf[PromptScores]
    ends: tuple[SequenceEnd, ...] = ()
    delayed: frozenset[Sequence] = frozenset()


def sample(output: StepOutput, step: Step, outcomes: Mapping[Sequence, Outcome | None]) -> Samples:
    """Chooses the step's new tokens. The logits are never changed.

    Args:
        outcomes: of the sequences with a grammar, what they may say next; None where that isn't known yet.

    Raises:
        EngineError: if the model's logits are not numbers.
    """
    ends = tuple(end for sequence, outcome in outcomes.items() if (end := _end(sequence, outcome)) is not None)
    delayed = frozenset(sequence for sequence, outcome in outcomes.items() if outcome is None)
    silent = delayed.union(end.sequence for end in ends)
    rows: dict[Sequence, int] = {}
    scores: list[PromptScores] = []
    for chunk in step.chunks:
        if chunk.sequence.request.wants_scores:
            scores.append(_score_prompt(output, chunk))
        if chunk.samples:
            rows |= {sequence: chunk.next_row for sequence in chunk.sequence.samplers if sequence not in silent}
    masked = _masked(output, rows, outcomes) if outcomes else {}
    before = range(step.num_steps, 1, -1)
    tokens = [SampledToken(sequence, _found(output, row, sequence, back), None) for back in before for sequence, row in rows.items()]
    read, drafts = frozenset(step.sampling.rows), {chunk.sequence: (chunk, *chunk.branches) for chunk in step.chunks if chunk.draft}
    for sequence, row in rows.items():
        sampled = _sample_one(output, row, masked.get(sequence), sequence, read)
        if isinstance(sampled, SampledToken):
            tokens.append(sampled)
            if sequence in drafts:
                more, more_ends = _sample_drafted(output, sampled.token_id, drafts[sequence], outcomes.get(sequence), read)
                tokens += more
                ends += more_ends
        else:
            ends += (sampled,)
    return Samples(tokens, scores, ends, delayed)


def _sample_drafted(
    output: StepOutput, token_id: int, chains: SequenceOf[Chunk], outcome: Outcome | None, read: frozenset[int]
) -> tuple[list[SampledToken], tuple[SequenceEnd, ...]]:
    """The tokens after `token_id`, as far as one of the drafted `chains` foresaw them: each is sampled as it would be in a step of its own.

    So they are the tokens that would come without a draft, which only says how far the rows are of use: those after the first token
    that no chain foresaw follow one that did not come.
    """
    tokens: list[SampledToken] = []
    sequence, allowed = chains[0].sequence, outcome if isinstance(outcome, Allowed) else None
    num_known = len(sequence.token_ids)
    try:
        for i in count(1):
            chains = [chain for chain in chains if len(chain.draft) >= i and chain.draft[i - 1] == token_id]
            if not chains:
                return tokens, ()
            sequence.token_ids.append(token_id)  # penalties and the like look at them
            row, masked = chains[0].next_row + i, None
            if allowed is not None:
                allowed = allowed.after(token_id)
                if allowed is None:  # nobody has asked the grammar
                    return tokens, ()
                if (end := _end(sequence, allowed)) is not None:
                    return tokens, (end,)
                masked = apply_masks(output.rows([row]), [allowed.mask])[0]
            sampled = _sample_one(output, row, masked, sequence, read)
            if isinstance(sampled, SequenceEnd):
                return tokens, (sampled,)
            tokens.append(sampled)
            token_id = sampled.token_id
        return tokens, ()
    finally:
        del sequence.token_ids[num_known:]


def _masked(output: StepOutput, rows: Mapping[Sequence, int], outcomes: Mapping[Sequence, Outcome | None]) -> dict[Sequence, Float32]:
    """The rows of sequences whose grammar says which tokens may come."""
    masks = {sequence: outcome.mask for sequence in rows if isinstance(outcome := outcomes.get(sequence), Allowed)}
    return dict(zip(masks, apply_masks(output.rows([rows[sequence] for sequence in masks]), list(masks.values())), strict=True))


def apply_masks(logits: Float32, masks: SequenceOf[bytes]) -> Float32:
    """Rows of logits, with -inf for every token whose bit in its row's mask, the lowest of each byte first, is 0.

    The masks' bytes become eight summands each, 0 or -inf: half the time of choosing by single bits.
    """
    if not masks:
        return logits
    bits = np.frombuffer(b"".join(masks), np.uint8).reshape(len(masks), -1)
    summands = np.take(SUMMANDS, bits, axis=0).reshape(len(masks), -1)[:, : logits.shape[1]]
    summands += logits
    return summands


def _end(sequence: Sequence, outcome: Outcome | None) -> SequenceEnd | None:
    if isinstance(outcome, Failed):
        return SequenceEnd(sequence, outcome.error)
    if outcome is None or outcome.state == "open":
        return None
    return SequenceEnd(sequence, None if outcome.state == "done" else "the grammar allows no token here")


def _found(output: StepOutput, row: int, sequence: Sequence, back: int = 1) -> int:
    """The token that the model found: in the last step, or (`back`) in one before. If it drew it, that was by the stream's next number."""
    if not sequence.takes_likeliest:
        sequence.take_uniform()
    return _checked(int(output.argmax()[-back, row]), sequence)


def _checked(token_id: int, sequence: Sequence) -> int:
    """The token, unless it is -1."""
    if token_id < 0:
        raise EngineError(f"the model's logits for request {sequence.request.spec.request_id!r} are not numbers (NaN)")
    return token_id


def _sample_one(
    output: StepOutput, row: int, masked: Float32 | None, sequence: Sequence, read: frozenset[int]
) -> SampledToken | SequenceEnd:
    num_top = sequence.request.spec.params.logprobs
    if row not in read or sequence.takes_likeliest:
        token_id = _found(output, row, sequence)
    else:
        logits = output.row(row)
        token_id = choose(logits, output.maxima(row), sequence) if masked is None else choose(masked, None, sequence)
        if token_id == NO_TOKEN:
            return SequenceEnd(sequence, "what the request says of tokens leaves none that may come here")
        _checked(-1 if math.isnan(logits[token_id]) else token_id, sequence)
    return SampledToken(sequence, token_id, None if num_top is None else rank_logprobs(output.row(row), token_id, num_top))


def choose(logits: Float32, maxima: Float32 | None, sequence: Sequence) -> int:
    """The next token of `sequence` from its row of logits, f32 [vocab], and their maxima by blocks, if those are known.

    It is NO_TOKEN where the request leaves none.
    """
    params = sequence.request.spec.params
    adjusted = adjust(logits, sequence)
    if adjusted is not logits:
        maxima = None
    if sequence.request.spec.is_restricted and adjusted.max() == -np.inf:
        return NO_TOKEN
    if sequence.chain is not None:
        return sequence.chain.choose(adjusted, sequence.token_ids, sequence.rng)
    if params.greedy:
        return int(adjusted.argmax())
    uniform = sequence.take_uniform()
    candidates = None if maxima is None else find_candidates(maxima, params.top_k, len(logits))
    return draw(adjusted, params, uniform) if candidates is None else int(candidates[draw(logits[candidates], params, uniform)])


def find_candidates(maxima: Float32, top_k: int, vocab_size: int) -> npt.NDArray[np.intp] | None:
    """Token ids, in order, among which the `top_k` largest logits are and all that equal the last of those; None if any token may be.

    As many blocks as `top_k` have a logit each of at least the last one's maximum.
    """
    if not 0 < top_k < len(maxima) or not np.isfinite(maxima.max()):
        return None
    blocks = np.flatnonzero(maxima >= np.partition(maxima, -top_k)[-top_k])
    token_ids = (blocks[:, None] * MAXIMA_BLOCK + WITHIN_BLOCK).ravel()
    return token_ids[token_ids < vocab_size]


def adjust(logits: Float32, sequence: Sequence) -> Float32:
    """Logits after all that the request says of single tokens; a copy where anything changes."""
    spec = sequence.request.spec
    params = spec.params
    if not sequence.adjusts_logits:
        return logits
    logits = logits.copy() if params.allowed_token_ids is None else _only(logits, params.allowed_token_ids)
    if bad := sequence.bad_token_ids:
        logits[bad] = -np.inf
    if params.logit_bias:
        logits[list(params.logit_bias)] += np.fromiter(params.logit_bias.values(), np.float32)
    if banned := sequence.banned_token_ids:
        own = list(banned - spec.model_stop_token_ids - spec.ignored_token_ids)
        kept = logits[own]
        logits[list(banned)] = -np.inf
        if logits.max() == -np.inf:  # a grammar allows nothing but what the request would rather not see yet, or the end
            logits[own] = kept
    if params.penalized and sequence.chain is None:
        seen = find_seen(params, sequence.token_ids, len(spec.prompt_token_ids))
        logits[seen.repeated] *= repetition_factors(logits[seen.repeated], params.repetition_penalty)
        logits[seen.counted] -= (params.presence_penalty + params.frequency_penalty * seen.counts).astype(np.float32)
    return logits


def _only(logits: Float32, token_ids: SequenceOf[int]) -> Float32:
    """The logits with -inf for every other token."""
    allowed = np.full_like(logits, -np.inf)
    kept = list(token_ids)
    allowed[kept] = logits[kept]
    return allowed


def draw(logits: Float32, params: SamplingParams, uniform: float) -> int:
    """The token at `uniform` (0 to 1) of the distribution that is left after temperature, min_p, top_k and top_p.

    Of equal logits at the end of top_k or top_p all are left. Where a logit is NaN it is drawn, for the caller to find.
    """
    highest = logits.max()
    if not np.isfinite(highest):
        return int(logits.argmax())
    scaled = logits - highest
    scaled /= np.float32(params.temperature)
    token_ids: npt.NDArray[np.intp] | None = None  # None: all
    if params.min_p > 0:
        token_ids = np.flatnonzero(scaled >= np.log(params.min_p))
    if 0 < params.top_k < (len(scaled) if token_ids is None else len(token_ids)):
        token_ids = np.flatnonzero(scaled >= np.partition(scaled, -params.top_k)[-params.top_k])
    weights = np.exp(scaled if token_ids is None else scaled[token_ids])
    if params.top_p < 1:
        nucleus = find_nucleus(weights, params.top_p)
        token_ids = nucleus if token_ids is None else token_ids[nucleus]
        weights = weights[nucleus]
    at = find_share(weights, uniform)
    return at if token_ids is None else int(token_ids[at])


def find_share(weights: Float32, share: float) -> int:
    """The first index up to which the weights sum to more than `share` of their total, and never one without weight.

    Sums of stretches tell in which one to look, so that not every weight's running sum is wanted.
    """
    starts = np.arange(0, len(weights), STRETCH)
    sums = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    wanted = share * sums[-1]
    # Never past the last stretch, or below the last index in it, with any weight, whatever the rounding.
    stretch = min(int(sums.searchsorted(wanted, side="right")), int(sums.searchsorted(sums[-1])))
    before = sums[stretch - 1] if stretch else 0.0
    cumulative = before + np.cumsum(weights[starts[stretch] : starts[stretch] + STRETCH], dtype=np.float64)
    within = min(int(cumulative.searchsorted(wanted, side="right")), int(cumulative.searchsorted(cumulative[-1])))
    return int(starts[stretch]) + within


def find_nucleus(weights: Float32, top_p: float) -> npt.NDArray[np.intp]:
    """The smallest set of indices that has `top_p` of the total weight, and what weighs as much as the lightest of them.

    Values are sorted, not indices, and of those only the heaviest, as far as they have that much together.
    """
    wanted, highest = top_p * weights.sum(dtype=np.float64), weights.max()
    for share in NUCLEUS_WEIGHTS:
        heavy = weights[weights >= highest * np.float32(share)]
        if share == 0 or heavy.sum(dtype=np.float64) >= wanted:
            break
    heavy = np.sort(heavy)[::-1]
    size = int(np.cumsum(heavy, dtype=np.float64).searchsorted(wanted))
    return np.flatnonzero(weights >= heavy[min(size, len(heavy) - 1)])


def rank_logprobs(logits: Float32, token_id: int, num_top: int) -> RankedLogprobs:
    """The log-probability and rank of `token_id` and of the `num_top` most likely tokens (-1: all), from raw logits f32 [vocab]."""
    highest = logits.max()
    log_total = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    num_top = len(logits) if num_top < 0 else min(num_top, len(logits))
    top = np.argpartition(logits, -num_top)[-num_top:] if num_top else np.empty(0, np.intp)
    top = top[np.argsort(-logits[top], kind="stable")]
    chosen = (token_id, float(logits[token_id]) - log_total, int(np.count_nonzero(logits > logits[token_id])) + 1)
    likeliest = ((int(i), float(logits[i]) - log_total, rank) for rank, i in enumerate(top, 1) if i != token_id)
    return (chosen, *likeliest)


def _score_prompt(output: StepOutput, chunk: Chunk) -> PromptScores:
    spec = chunk.sequence.request.spec
    rows = output.rows(range(chunk.first_row, chunk.first_row + chunk.end - chunk.logits_start))
    num_top = spec.params.prompt_logprobs
    next_ids = () if num_top is None else spec.prompt_token_ids[chunk.logits_start + 1 : chunk.end + 1]
    logprobs = tuple(rank_logprobs(row, token_id, num_top or 0) for row, token_id in zip(rows, next_ids, strict=False))
    return PromptScores(chunk.sequence.request, logprobs, rows.copy() if spec.wants_prompt_logits else None)
