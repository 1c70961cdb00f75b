"""Validates a request before an engine takes it. Needs no engine: a server does it in a process of its own."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.engine.sampling_params import MAX_BAD_WORD_CHARACTERS, SamplingParams
from cupola.runtime.errors import ContextLengthError, RequestError
from cupola.runtime.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Validator:
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

    def encode(self, prompt: Prompt, *, add_special_tokens: bool = True, num_kept: int | None = None) -> tuple[int, ...]:
        """The prompt's token ids, the last `num_kept` if that is given and there are more.

        Raises:
            RequestError: for text far too long before any work is spent on it; for padding where the model doesn't count it.
        """
        num_leading = 0
        if isinstance(prompt, str):
            text, prompt = prompt, self._encode_text(prompt, add_special_tokens)
            if num_kept is not None and len(prompt) > num_kept and add_special_tokens:
                num_leading = self._num_leading(prompt, text)
        if not isinstance(prompt, Sequence | np.ndarray):
            raise RequestError(f"is {prompt!r:.60}", field="prompt", fix="give text or token ids")
        if len(prompt) == 0:
            raise RequestError("is empty", field="prompt", fix="give at least one token")
        if num_kept is not None and len(prompt) > num_kept:
            num_leading = min(num_leading, num_kept)
            prompt = (*prompt[:num_leading], *prompt[len(prompt) - num_kept + num_leading :])
        if len(prompt) > self.max_length:
            raise ContextLengthError(f"{len(prompt)} tokens", self.max_length, self.model.context_length)
        items: tuple[Any, ...] = tuple(prompt)
        if self.model.padding_token_id is not None and self.model.padding_token_id in items:
            problem = f"has the padding token {self.model.padding_token_id}, past which the model's positions do not count"
            raise RequestError(problem, field="prompt", fix="leave it out")
        if set(map(type, items)) == {int} and min(items) >= 0 and max(items) < self.model.vocab_size:
            return items  # what the loop would give, in a quarter of its time
        return tuple(self.token_id(item, "prompt") for item in items)

    def num_kept(self, params: SamplingParams) -> int | None:
        """How many of a prompt's tokens are kept at most; None for all."""
        if params.truncate_prompt_tokens == -1:
            return max(1, self.max_length - (params.max_tokens or 1))
        return params.truncate_prompt_tokens

    def bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """The token ids of `bad_words`, each as it is written after a blank and without one. Raises RequestError.

        What a blank before it makes of a word counts only if it is no further token.
        """
        found = []
        for word in params.bad_words or ():
            plain, after_blank = (self._encode_word(text) for text in (word.lstrip(), f" {word.lstrip()}"))
            found.append(plain)
            if len(after_blank) == len(plain) and after_blank[0] != plain[0]:
                found.append(after_blank)
        return tuple(found)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(word, max_tokens=MAX_BAD_WORD_CHARACTERS, add_special_tokens=False)) if self.tokenizer else ()

    def _encode_text(self, text: str, add_special_tokens: bool) -> list[int]:
        if self.tokenizer is None:
            raise RequestError("is text, and this artifact has no tokenizer", field="prompt", fix="give token ids")
        return self.tokenizer.encode(text, max_tokens=self.max_length, add_special_tokens=add_special_tokens)

    def _num_leading(self, token_ids: Sequence[int], text: str) -> int:
        """How many special tokens the tokenizer puts before a text: they are no part of what may be cut off."""
        plain = self._encode_text(text, add_special_tokens=False)
        lengths = range(len(token_ids) - len(plain) + 1)
        return next((n for n in lengths if list(token_ids[n : n + len(plain)]) == plain), 0)

    def token_id(self, item: object, field: str) -> int:
        """`item`, if it is a token id of the model. Raises RequestError naming `field`."""
        if not isinstance(item, bool) and isinstance(item, int | np.integer) and 0 <= item < self.model.vocab_size:
            return operator.index(item)
        raise RequestError(f"has the token id {item!r:.60}", field=field, fix=f"give whole numbers from 0 to {self.model.vocab_size - 1}")

    def check_params(self, params: SamplingParams) -> None:
        """Checks what `SamplingParams` itself can't: what needs the vocabulary. Raises RequestError."""
        if not isinstance(params, SamplingParams):
            raise RequestError(f"is {params!r:.60}", field="sampling_params", fix="give SamplingParams")
        for field, wanted in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            self._check_logprobs(field, wanted)
        ids: Iterable[tuple[str, int]] = [
            *(("stop_token_ids", i) for i in params.stop_token_ids or ()),
            *(("logit_bias", i) for i in params.logit_bias or ()),
            *(("allowed_token_ids", i) for i in params.allowed_token_ids or ()),
        ]
        for field, token_id in ids:
            self.token_id(token_id, field)
        if params.stop_strings and self.tokenizer is None:
            raise RequestError("needs text, and this artifact has no tokenizer", field="stop", fix="use stop_token_ids")
        if params.bad_words and self.tokenizer is None:
            raise RequestError("needs text, and this artifact has no tokenizer", field="bad_words", fix="use logit_bias")

    def _check_logprobs(self, field: str, wanted: int | None) -> None:
        vocab_size = self.model.vocab_size
        limit = vocab_size if self.max_logprobs < 0 else min(self.max_logprobs, vocab_size)
        count = vocab_size if wanted == -1 else wanted or 0
        if count > limit:
            fix = (
                f"give at most {vocab_size}" if limit == vocab_size else f"give at most {limit}, or make the LLM with max_logprobs={count}"
            )
            raise RequestError(f"asks for {count}", field=field, fix=fix)
