"""A request and its sequences: all that is known of them while they run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from itertools import islice

import numpy as np

from cupola.runtime.device.interface import Float32
from cupola.runtime.engine.block_pool import chain_hash
from cupola.runtime.engine.draws import parameter_columns
from cupola.runtime.engine.outputs import CompletionOutput, DraftCounts, Logprob, RequestMetrics, RequestOutput, TokenLogprobs
from cupola.runtime.engine.samplers.chain import Chain
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.state_manager import State
from cupola.runtime.text.detokenizer import Detokenizer
from cupola.runtime.text.stop_strings import StopStrings
from cupola.runtime.text.tokenizer import Tokenizer

RankedLogprobs = tuple[tuple[int, float, int], ...]  # (token id, logprob, rank), the token in question first


@dataclass(frozen=True)
class RequestSpec:
    """A checked request. `max_length` is prompt plus output, in tokens; lower `priority` goes first."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: frozenset[int]  # the model's own and the request's
    model_stop_token_ids: frozenset[int]  # they end the output without a `stop_reason`
    max_length: int
    seed: tuple[int, ...]  # entropy of the request's random stream
    arrival: int  # counts requests
    priority: int = 0
    cache_salt: bytes = b""  # requests share cached blocks only under the same salt, of at most 64 bytes
    wants_prompt_logits: bool = False
    grammar: bytes | None = None  # that the output must follow, as `GrammarCompiler.compile` gave it
    ignored_token_ids: frozenset[int] = frozenset()  # stop tokens that are not taken even where the grammar may end
    bad_words: tuple[tuple[int, ...], ...] = ()  # the last token of each may not follow the others

    @property
    def is_restricted(self) -> bool:
        """True if the request itself restricts the tokens that may come: none may be left."""
        return self.params.allowed_token_ids is not None or bool(self.bad_words)

    @cached_property  # asked for each token
    def moves_logits(self) -> bool:
        """True if a bias, tokens that may not come or penalties change logits throughout."""
        return self.is_restricted or bool(self.params.logit_bias) or self.params.penalized

    @cached_property
    def is_plain(self) -> bool:
        """True if temperature, min_p, top_k and top_p say all of how tokens come, but for stop tokens that may not come yet."""
        return not self.params.uses_chain and self.grammar is None and not self.moves_logits

    @cached_property
    def draw(self) -> tuple[int, ...]:
        """The parameters as `forward` takes them."""
        return parameter_columns(self.params)


class Status(Enum):
    """Where a sequence is. A completion beyond the first is unborn until the prompt was computed."""

    UNBORN = auto()
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One completion of a request: its tokens, and how many of them have their K/V in the blocks of `state`."""

    def __init__(self, request: Request, index: int) -> None:
        self.request, self.index = request, index
        self.name = f"{request.spec.arrival}.{index}"  # no other sequence of the engine has it
        self.status = Status.UNBORN
        self.token_ids = list(request.spec.prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_again = 0  # tokens after these that were computed before, of a state that had to go back
        self.state = State()
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.error: str | None = None
        self.logprobs: list[TokenLogprobs] = []
        self._block_hashes: list[bytes] = []
        self._rng: np.random.Generator | None = None
        self._ahead: deque[float] = deque()  # of its numbers
        self._detokenizer = request.make_detokenizer()
        self.chain = request.make_chain()

    @property
    def rank(self) -> tuple[int, int, int]:
        """The order of service: the lowest rank is served first and preempted last."""
        return (self.request.spec.priority, self.request.spec.arrival, self.index)

    @property
    def num_new_tokens(self) -> int:
        """Tokens whose K/V is still to be computed."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def decoding(self) -> bool:
        """True if only the latest token is left to compute, but for those to compute again."""
        return self.num_new_tokens - self.num_again == 1

    @property
    def output_token_ids(self) -> list[int]:
        """The tokens generated so far."""
        return self.token_ids[len(self.request.spec.prompt_token_ids) :]

    @property
    def num_output_tokens(self) -> int:
        """How many tokens were generated so far."""
        return len(self.token_ids) - len(self.request.spec.prompt_token_ids)

    @property
    def banned_token_ids(self) -> frozenset[int]:
        """Stop tokens that may not come now, if anything else may."""
        spec = self.request.spec
        return spec.ignored_token_ids | spec.stop_token_ids if self.num_output_tokens < spec.params.min_tokens else spec.ignored_token_ids

    @property
    def adjusts_logits(self) -> bool:
        """True if its logits are changed now."""
        return self.request.spec.moves_logits or bool(self.banned_token_ids)

    @property
    def bad_token_ids(self) -> list[int]:
        """The tokens that would end a bad word now."""
        words, tokens, num_output = self.request.spec.bad_words, self.token_ids, self.num_output_tokens
        return [w[-1] for w in words if len(w) == 1 or (len(w) <= num_output + 1 and tuple(tokens[1 - len(w) :]) == w[:-1])]

    @property
    def takes_likeliest(self) -> bool:
        """True if its next token is the argmax of the model's logits."""
        spec = self.request.spec
        return spec.params.greedy and spec.is_plain and not self.banned_token_ids

    def needs_token_alone(self, draws_tokens: bool) -> bool:
        """True if the model finds its next token, and nothing else is wanted of the logits.

        A model that `draws_tokens` finds not only the likeliest, but for one sequence a row.
        """
        spec = self.request.spec
        if not spec.is_plain or spec.params.logprobs is not None or self.banned_token_ids:
            return False
        return spec.params.greedy or (draws_tokens and len(self.samplers) == 1)

    def goes_on_alone(self, draws_tokens: bool) -> bool:
        """True if the model can go on by itself. The first token may have to be shared out."""
        return self.num_new_tokens == 1 and self.num_output_tokens > 0 and self.needs_token_alone(draws_tokens)

    def output_from(self, start: int) -> list[int]:
        """The tokens generated so far but for the first `start`."""
        return self.token_ids[len(self.request.spec.prompt_token_ids) + start :]

    @property
    def samplers(self) -> SequenceOf[Sequence]:
        """The sequences that sample from the logits of this one's last token: after the prompt also the completions that fork from it."""
        return [self, *(s for s in self.request.sequences if s.status is Status.UNBORN)] if self.index == 0 else [self]

    @property
    def text(self) -> str:
        """The text so far, as far as nothing can take it back; it only grows."""
        return self._detokenizer.released if self._detokenizer else ""

    @property
    def rng(self) -> np.random.Generator:
        """This sequence's own random stream, made at its first use."""
        if self._rng is None:
            self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*self.request.spec.seed, self.index))))
        return self._rng

    def uniforms_ahead(self, count: int) -> list[float]:
        """The stream's next numbers, which remain to be taken."""
        while len(self._ahead) < count:
            self._ahead.append(self.rng.random())
        return list(islice(self._ahead, count))

    def take_uniform(self) -> float:
        """The stream's next number, one a token."""
        return self._ahead.popleft() if self._ahead else self.rng.random()

    def block_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """The chained hashes of the first `num_blocks` blocks of tokens."""
        for i in range(len(self._block_hashes), num_blocks):
            parent = self._block_hashes[-1] if i else self.request.spec.cache_salt
            self._block_hashes.append(chain_hash(parent, self.token_ids[i * block_size : (i + 1) * block_size]))
        return self._block_hashes[:num_blocks]

    def append(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Adds a sampled token and finishes the sequence if that token ends it."""
        spec = self.request.spec
        self.token_ids.append(token_id)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        may_stop = self.num_output_tokens >= spec.params.min_tokens
        stopped = may_stop and token_id in spec.stop_token_ids
        if self._detokenizer and (not stopped or spec.params.include_stop_str_in_output):
            self.stop_reason = self._detokenizer.push(token_id, check_stop=may_stop)
        if self.stop_reason is not None:
            self._finish("stop")
        elif stopped:
            self.stop_reason = None if token_id in spec.model_stop_token_ids else token_id
            self._finish("stop")
        elif len(self.token_ids) >= spec.max_length:
            self._finish("length")

    def end(self, reason: str, error: str | None = None) -> None:
        """Finishes the sequence where it is, without a token that ends it."""
        self.error = error
        self._finish(reason)

    def output(self) -> CompletionOutput:
        """This completion so far."""
        logprobs = self.logprobs if self.request.spec.params.logprobs is not None else None
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=self.output_token_ids,
            cumulative_logprob=None if logprobs is None else sum(next(iter(entry.values())).logprob for entry in logprobs),
            logprobs=None if logprobs is None else list(logprobs),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
        )

    def _finish(self, reason: str) -> None:
        self.status, self.finish_reason = Status.FINISHED, reason
        if self._detokenizer and not self._detokenizer.finished:
            self._detokenizer.finish()


class Request:
    """A request while it runs. Its prompt is computed once, by `sequences[0]`; the others fork from that one."""

    def __init__(self, spec: RequestSpec, tokenizer: Tokenizer | None) -> None:
        self.spec, self._tokenizer, self._stop_strings = spec, tokenizer, StopStrings(spec.params.stop_strings)
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]  # nothing predicts the first token
        self.prompt_logits: list[Float32] = []
        self.num_scored_tokens = 0  # prompt tokens whose logits were looked at
        self.num_cached_tokens: int | None = None
        self.num_preemptions = 0
        self.draft_counts = DraftCounts()
        self.arrival_time = time.monotonic()
        self.first_scheduled_time: float | None = None
        self.first_token_time: float | None = None
        self.finished_time: float | None = None
        self.sequences = tuple(Sequence(self, i) for i in range(spec.params.n))

    @property
    def finished(self) -> bool:
        """True if every completion is finished."""
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)

    @property
    def wants_scores(self) -> bool:
        """True if the logits of prompt tokens are still wanted, so that none of them may come from the prefix cache."""
        asked = self.spec.params.prompt_logprobs is not None or self.spec.wants_prompt_logits
        return asked and self.num_scored_tokens < len(self.spec.prompt_token_ids)

    def make_detokenizer(self) -> Detokenizer | None:
        """A detokenizer for one completion; None if the request wants, or can have, no text."""
        params = self.spec.params
        if self._tokenizer is None or not params.detokenize:
            return None
        return Detokenizer(
            self._tokenizer,
            self.spec.prompt_token_ids,
            self._stop_strings,
            skip_special_tokens=params.skip_special_tokens,
            include_stop_str_in_output=params.include_stop_str_in_output,
        )

    def make_chain(self) -> Chain | None:
        """The samplers of one completion, if they run as a chain."""
        params, tokenizer = self.spec.params, self._tokenizer
        bytes_of = None if tokenizer is None else tokenizer.token_bytes
        return Chain(params, len(self.spec.prompt_token_ids), bytes_of) if params.uses_chain else None

    def add_prompt_scores(self, logprobs: tuple[RankedLogprobs, ...], logits: Float32 | None) -> None:
        """Takes in what the next prompt tokens' logits gave: `logprobs` of the tokens after them, and raw `logits` if wanted."""
        self.prompt_logprobs += [self.describe(entry) for entry in logprobs]
        if logits is not None:
            self.prompt_logits.append(logits)

    def describe(self, entries: RankedLogprobs) -> TokenLogprobs:
        """Logprobs by token id, with each token's text."""
        text_of = self._tokenizer.token_text if self._tokenizer else None
        return {token_id: Logprob(logprob, rank, text_of(token_id) if text_of else None) for token_id, logprob, rank in entries}

    def output(self) -> RequestOutput:
        """Everything known so far."""
        spec = self.spec
        return RequestOutput(
            request_id=spec.request_id,
            prompt=spec.prompt,
            prompt_token_ids=list(spec.prompt_token_ids),
            prompt_logprobs=None if spec.params.prompt_logprobs is None else list(self.prompt_logprobs),
            outputs=[sequence.output() for sequence in self.sequences],
            finished=self.finished,
            metrics=RequestMetrics(
                self.arrival_time,
                self.first_scheduled_time,
                self.first_token_time,
                self.finished_time,
                self.num_cached_tokens or 0,
                self.num_preemptions,
                self.draft_counts.num_tokens,
                self.draft_counts.num_accepted,
            ),
        )
