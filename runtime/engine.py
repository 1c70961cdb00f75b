"""The engine: requests in, outputs out, a step at a time."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cupola.runtime.artifact import ModelConfig
from cupola.runtime.batch import Executor, Float32
from cupola.runtime.block_pool import BlockPool
from cupola.runtime.errors import EngineError, OptionError, RequestError
from cupola.runtime.request import Request, RequestSpec
from cupola.runtime.sampler import sample
from cupola.runtime.sampling_params import SamplingParams
from cupola.runtime.scheduler import Scheduler
from cupola.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int]
MAX_SALT_BYTES = 64


@dataclass(frozen=True)
class EngineConfig:
    """How much an engine takes on at once. `seed` is for requests that bring none; a `max_logprobs` of -1 is the vocabulary.

    Raises:
        OptionError: naming the field and the fix.
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = True
    seed: int = 0
    max_logprobs: int = 20

    def __post_init__(self) -> None:
        for name, lowest in (("max_num_seqs", 1), ("max_num_batched_tokens", 1), ("seed", 0), ("max_logprobs", -1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value < 2**31:
                raise OptionError(f"is {value!r:.60}", field=name, fix=f"give a whole number of at least {lowest}")
        if not isinstance(self.enable_prefix_caching, bool):
            raise OptionError(f"is {self.enable_prefix_caching!r:.60}", field="enable_prefix_caching", fix="give true or false")


class Engine:
    """Schedules requests over an executor. For one thread.

    Args:
        executor: runs the model; its `num_blocks` pages are the engine's to give away.
        model: the model's context length, vocabulary and stop tokens.
        block_size: tokens a page holds.
        tokenizer: None for a model that takes and gives token ids only.
    """

    def __init__(
        self, executor: Executor, model: ModelConfig, block_size: int, config: EngineConfig, tokenizer: Tokenizer | None = None
    ) -> None:
        self.executor, self.model, self.config, self.tokenizer = executor, model, config, tokenizer
        pool = BlockPool(executor.num_blocks, block_size, enable_prefix_caching=config.enable_prefix_caching)
        self.scheduler = Scheduler(pool, max_num_seqs=config.max_num_seqs, max_num_batched_tokens=config.max_num_batched_tokens)
        self.max_length = min(model.context_length, executor.num_blocks * block_size)  # tokens of one sequence that can have K/V
        self._num_requests = 0

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: bytes = b"",
        add_special_tokens: bool = True,
        wants_prompt_logits: bool = False,
    ) -> Request:
        """Checks a request and queues it; nothing is changed if it is refused.

        Args:
            prompt: text or token ids.
            priority: lower goes first.
            cache_salt: at most 64 bytes; only requests of the same salt share cached K/V.
            add_special_tokens: whether a text gets the tokenizer's special tokens, such as a leading BOS.
            wants_prompt_logits: collect the logits of every prompt token in `Request.prompt_logits`.

        Raises:
            RequestError: naming the field and the fix.
        """
        if request_id in self.scheduler.requests:
            raise RequestError(f"is {request_id!r}, which is running already", field="request_id", fix="give another one")
        token_ids = self._encode(prompt, add_special_tokens)
        self._check_params(params)
        if len(cache_salt) > MAX_SALT_BYTES:
            raise RequestError(f"has {len(cache_salt)} bytes", field="cache_salt", fix=f"give at most {MAX_SALT_BYTES}")
        model_stops = frozenset(() if params.ignore_eos else self.model.stop_token_ids)
        # A prompt as long as the context still has one token after it, whose own K/V is never needed.
        max_length = max(len(token_ids) + 1, min(len(token_ids) + (params.max_tokens or math.inf), self.max_length))
        spec = RequestSpec(
            request_id=request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=token_ids,
            params=params,
            stop_token_ids=model_stops | frozenset(params.stop_token_ids or ()),
            model_stop_token_ids=model_stops,
            max_length=int(max_length),
            seed=(self.config.seed, self._num_requests) if params.seed is None else (params.seed % 2**64,),
            arrival=self._num_requests,
            priority=priority,
            cache_salt=cache_salt,
            wants_prompt_logits=wants_prompt_logits,
        )
        request = Request(spec, self.tokenizer)
        self._num_requests += 1
        self.scheduler.add(request)
        return request

    def step(self) -> list[Request]:
        """Runs one batch. Returns the requests that have something new: `Request.output` gives all of it, their sequences what is new.

        Raises:
            EngineError: if the model failed. No request and no block is lost: what ran is queued again, and the
                caller chooses between another step and `abort`.
        """
        try:
            step = self.scheduler.schedule()
            logits = self.executor.run(step.batch)
            return self.scheduler.update(step, sample(logits, step))
        except BaseException as error:
            self.scheduler.recover()
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            raise EngineError(f"a step failed: {type(error).__name__}: {error}") from error

    def abort(self, request_id: str) -> bool:
        """Forgets a request and frees its blocks; False if there is none of that name (any more)."""
        return self.scheduler.abort(request_id) is not None

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self.scheduler.requests)

    def check_idle(self) -> None:
        """Checks that every block is free again. Raises EngineError; for tests and health checks when nothing runs."""
        self.scheduler.check_integrity()
        pool = self.scheduler.pool
        if pool.num_free_blocks != pool.num_blocks:
            raise EngineError(f"{pool.num_blocks - pool.num_free_blocks} blocks are still held")

    def _encode(self, prompt: Prompt, add_special_tokens: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("is text, and this artifact has no tokenizer", field="prompt", fix="give token ids")
            prompt = self.tokenizer.encode(prompt, max_tokens=self.max_length, add_special_tokens=add_special_tokens)
        if not isinstance(prompt, Sequence | np.ndarray):
            raise RequestError(f"is {prompt!r:.60}", field="prompt", fix="give text or token ids")
        if len(prompt) == 0:
            raise RequestError("is empty", field="prompt", fix="give at least one token")
        if len(prompt) > self.max_length:
            limit = "the model's context" if self.max_length == self.model.context_length else "what kv_memory holds"
            raise RequestError(f"has {len(prompt)} tokens, more than {limit}, {self.max_length}", field="prompt", fix="shorten it")
        return tuple(self._token_id(item, "prompt") for item in prompt)

    def _token_id(self, item: object, field: str) -> int:
        if not isinstance(item, bool) and isinstance(item, int | np.integer) and 0 <= item < self.model.vocab_size:
            return operator.index(item)
        raise RequestError(f"has the token id {item!r:.60}", field=field, fix=f"give whole numbers from 0 to {self.model.vocab_size - 1}")

    def _check_params(self, params: SamplingParams) -> None:
        if not isinstance(params, SamplingParams):
            raise RequestError(f"is {params!r:.60}", field="sampling_params", fix="give SamplingParams")
        vocab_size = self.model.vocab_size
        if params.top_k > vocab_size:
            raise RequestError(f"is {params.top_k}", field="top_k", fix=f"give at most the vocabulary's size, {vocab_size}")
        for field, wanted in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            self._check_logprobs(field, wanted)
        ids: Iterable[tuple[str, int]] = [
            *(("stop_token_ids", i) for i in params.stop_token_ids or ()),
            *(("logit_bias", i) for i in params.logit_bias or ()),
        ]
        for field, token_id in ids:
            self._token_id(token_id, field)
        if params.stop_strings and self.tokenizer is None:
            raise RequestError("needs text, and this artifact has no tokenizer", field="stop", fix="use stop_token_ids")

    def _check_logprobs(self, field: str, wanted: int | None) -> None:
        vocab_size = self.model.vocab_size
        limit = vocab_size if self.config.max_logprobs < 0 else min(self.config.max_logprobs, vocab_size)
        count = vocab_size if wanted == -1 else wanted or 0
        if count > limit:
            fix = (
                f"give at most {vocab_size}" if limit == vocab_size else f"give at most {limit}, or make the LLM with max_logprobs={count}"
            )
            raise RequestError(f"asks for {count}", field=field, fix=fix)


def stack_logits(request: Request) -> Float32:
    """The logits of all prompt tokens, f32 [n, vocab], of a finished request that wanted them."""
    return np.concatenate(request.prompt_logits)
