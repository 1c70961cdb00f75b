"""Beam search: the most likely continuations as a whole, in vLLM's terms and with its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cupola.runtime.engine.outputs import RequestOutput, TokenLogprobs
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import RequestError

Generate = Callable[[list[list[int]], SamplingParams], list[RequestOutput]]
MAX_BEAM_WIDTH = 64


@dataclass(frozen=True)
class BeamSearchParams:
    """How to search.

    Args:
        beam_width: continuations that are kept after each token, and returned at the end.
        max_tokens: new tokens at most.
        ignore_eos: go on after the model's own stop tokens.
        length_penalty: the power of a sequence's length, its prompt included, by which its log-probability is divided: its score.

    Raises:
        RequestError: naming the field and the fix.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, highest in (("beam_width", MAX_BEAM_WIDTH), ("max_tokens", 2**31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
                raise RequestError(f"is {value!r:.60}", field=name, fix=f"give a whole number from 1 to {highest}")
        if isinstance(self.length_penalty, bool) or not isinstance(self.length_penalty, int | float) or not abs(self.length_penalty) <= 100:
            raise RequestError(f"is {self.length_penalty!r:.60}", field="length_penalty", fix="give a number from -100 to 100")
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"is {self.ignore_eos!r:.60}", field="ignore_eos", fix="give true or false")


@dataclass(frozen=True)
class BeamSearchSequence:
    """A continuation. `tokens` begin with the prompt's, and `text` is theirs; `cum_logprob` is of the new ones."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def score(self, stop_token_ids: Sequence[int], length_penalty: float) -> float:
        """The log-probability over a power of the length, in which an end token doesn't count."""
        length = len(self.tokens) - (self.tokens[-1] in stop_token_ids)
        return self.cum_logprob / max(1, length) ** length_penalty


@dataclass(frozen=True)
class BeamSearchOutput:
    """The best continuations of a prompt, the best first."""

    sequences: list[BeamSearchSequence]


class BeamSearch:
    """The searches of some prompts, together.

    Args:
        generate: completes token ids; the K/V of what beams have in common comes from its cache.
        stop_token_ids: the model's own.
        max_length: tokens that a sequence may have.
    """

    def __init__(self, generate: Generate, params: BeamSearchParams, stop_token_ids: Sequence[int], max_length: int) -> None:
        self._generate, self._params, self._stops, self._max_length = generate, params, stop_token_ids, max_length
        # As many as can't all be beams' ends: of two candidates for each beam, one goes on.
        self._sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=2 * params.beam_width, ignore_eos=True, detokenize=False)

    def run(self, prompts: Sequence[Sequence[int]]) -> list[list[BeamSearchSequence]]:
        """The best continuations of each prompt. Raises RequestError."""
        beams = [[BeamSearchSequence(list(prompt), [])] for prompt in prompts]
        done: list[list[BeamSearchSequence]] = [[] for _ in prompts]
        for _ in range(self._params.max_tokens):
            open_beams = [(i, beam) for i, group in enumerate(beams) for beam in group if len(beam.tokens) < self._max_length]
            if not open_beams:
                break
            outputs = self._generate([beam.tokens for _, beam in open_beams], self._sampling)
            found: list[list[BeamSearchSequence]] = [[] for _ in prompts]
            for (i, beam), output in zip(open_beams, outputs, strict=True):
                logprobs = output.outputs[0].logprobs
                assert logprobs is not None
                for candidate in _extend(beam, logprobs[0], 2 * self._params.beam_width):
                    ends = candidate.tokens[-1] in self._stops and not self._params.ignore_eos
                    (done if ends else found)[i].append(replace(candidate, finish_reason="stop" if ends else None))
            for i, group in enumerate(beams):
                full = [beam for beam in group if len(beam.tokens) >= self._max_length]
                beams[i] = self._best([*full, *found[i]])
        cut_off = ([replace(beam, finish_reason="length") for beam in group] for group in beams)
        return [self._best([*ended, *others]) for ended, others in zip(done, cut_off, strict=True)]

    def _best(self, beams: list[BeamSearchSequence]) -> list[BeamSearchSequence]:
        return sorted(beams, key=lambda beam: -beam.score(self._stops, self._params.length_penalty))[: self._params.beam_width]


def _extend(beam: BeamSearchSequence, logprobs: TokenLogprobs, most: int) -> list[BeamSearchSequence]:
    """The beam with each of the `most` most likely tokens behind it."""
    return [
        replace(beam, tokens=[*beam.tokens, token_id], logprobs=[*beam.logprobs, logprobs], cum_logprob=beam.cum_logprob + entry.logprob)
        for token_id, entry in list(logprobs.items())[:most]
    ]
