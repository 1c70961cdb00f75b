"""What a request must be before an engine takes it. Needs no engine: a server asks in a process of its own."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupola.runtime.artifact import ModelConfig
from cupola.runtime.errors import RequestError
from cupola.runtime.sampling_params import SamplingParams
from cupola.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Admission:
    """Checks prompts and parameters against a model.

    Args:
        max_length: tokens of one sequence that can have K/V: the context, or what the pages hold.
        max_logprobs: log-probabilities a token that may be asked for; -1 is the vocabulary.
        tokenizer: None for a model that takes and gives token ids only.
    """

    model: ModelConfig
    max_length: int
    max_logprobs: int
    tokenizer: Tokenizer | None

    def encode(self, prompt: Prompt, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The prompt's token ids. Raises RequestError, for text far too long before any work is spent on it."""
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
        items: tuple[Any, ...] = tuple(prompt)
        if set(map(type, items)) == {int} and min(items) >= 0 and max(items) < self.model.vocab_size:
            return items  # what the loop would give, in a quarter of its time
        return tuple(self.token_id(item, "prompt") for item in items)

    def token_id(self, item: object, field: str) -> int:
        """`item`, if it is a token id of the model. Raises RequestError naming `field`."""
        if not isinstance(item, bool) and isinstance(item, int | np.integer) and 0 <= item < self.model.vocab_size:
            return operator.index(item)
        raise RequestError(f"has the token id {item!r:.60}", field=field, fix=f"give whole numbers from 0 to {self.model.vocab_size - 1}")

    def check_params(self, params: SamplingParams) -> None:
        """Checks what `SamplingParams` itself can't: what needs the vocabulary. Raises RequestError."""
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
            self.token_id(token_id, field)
        if params.stop_strings and self.tokenizer is None:
            raise RequestError("needs text, and this artifact has no tokenizer", field="stop", fix="use stop_token_ids")

    def _check_logprobs(self, field: str, wanted: int | None) -> None:
        vocab_size = self.model.vocab_size
        limit = vocab_size if self.max_logprobs < 0 else min(self.max_logprobs, vocab_size)
        count = vocab_size if wanted == -1 else wanted or 0
        if count > limit:
            fix = (
                f"give at most {vocab_size}" if limit == vocab_size else f"give at most {limit}, or make the LLM with max_logprobs={count}"
            )
            raise RequestError(f"asks for {count}", field=field, fix=fix)
