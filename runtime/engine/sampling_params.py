"""How a request wants its tokens chosen, in vLLM's names and with vLLM's meanings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from cupola.runtime.engine.samplers.params import INTEGERS, NUMBERS, ChainParams
from cupola.runtime.errors import RequestError
from cupola.runtime.structured.structured_outputs import StructuredOutputs

GREEDY_TEMPERATURE = 1e-5  # below it, sampling is greedy: the softmax would be one-hot anyway
RANDOM_SEED = -1
MAX_N, MAX_STOPS, MAX_STOP_CHARACTERS, MAX_LOGIT_BIASES = 128, 64, 1024, 1024
MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS = 64, 128
MAX_INT = 2**63 - 1


@dataclass(frozen=True)
class SamplingParams(ChainParams):
    """Parameters of a request. All are checked here, but for those that need the vocabulary, which `Engine.add_request` checks.

    Args:
        n: completions a prompt, sharing the prompt's K/V.
        temperature: 0 is greedy.
        top_k: sample from the k most likely tokens; 0, -1 or more than there are is all of them.
        top_p: sample from the smallest set of tokens with this much probability, 0 to 1; 0 is greedy.
        min_p: drop tokens with less than this times the most likely one's probability, 0 to 1.
        repetition_penalty: divides (or multiplies, if negative) the logits of tokens seen in prompt or output; 1 is off.
        presence_penalty, frequency_penalty: subtracted for each token (each occurrence) in the output, -2 to 2.
        repeat_last_n: penalties look at so many of the latest tokens; -1 is all, 0 none.
        logit_bias: token id to a number from -100 to 100 that is added to its logit.
        bad_words: texts that must not come. Of the tokens that a text is made of, with and without a blank before it, the last one is not
            taken after the others; the same letters in other tokens may come.
        allowed_token_ids: the only token ids that may come.
        truncate_prompt_tokens: how many of the prompt's last tokens are kept, beside the special ones that begin a text; -1 is as many as
            leave room for `max_tokens`.
        seed: makes the request's samples repeatable, whatever runs beside it; -1 is none.
        stop: strings that end the output, left out of it unless `include_stop_str_in_output`.
        stop_token_ids: token ids that end the output, beside the model's own.
        ignore_eos: go on after the model's own stop tokens.
        max_tokens: new tokens at most; None is as many as the context holds.
        min_tokens: new tokens before anything may stop the output.
        logprobs: log-probabilities of the chosen and of this many most likely tokens, of the model's own distribution; -1 is
            all tokens. `LLM(max_logprobs=…)` says how many may be asked for.
        prompt_logprobs: the same for the prompt's tokens.
        detokenize: whether to make text (False: token ids only).
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: the form that the output must have, such as a JSON schema. Its end is the output's end.

    The samplers that llama.cpp adds are `ChainParams`'.

    Raises:
        RequestError: naming the field and the fix.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = -1
    logit_bias: Mapping[int, float] | None = None
    bad_words: Sequence[str] | None = None
    allowed_token_ids: Sequence[int] | None = None
    truncate_prompt_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        for name, lowest, highest in _INTEGERS:
            _check_integer(name, getattr(self, name), lowest, highest)
        for name, lowest_number, highest_number in _NUMBERS:
            _check_number(name, getattr(self, name), lowest_number, highest_number)
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")
        self._check_stops()
        self._check_logit_bias()
        self._check_words()
        self.check_chain()
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            raise _wrong("structured_outputs", self.structured_outputs, "StructuredOutputs")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _wrong("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")

    @property
    def greedy(self) -> bool:
        """True if the most likely token is taken."""
        return self.temperature < GREEDY_TEMPERATURE or self.top_p == 0

    @property
    def penalized(self) -> bool:
        """True if tokens seen before change the logits."""
        given = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return given and self.repeat_last_n != 0

    @property
    def restriction(self) -> str:
        """The parameter that leaves no token, where none is left."""
        names = ("structured_outputs", "allowed_token_ids", "bad_words")
        return next((name for name in names if getattr(self, name) is not None), names[0])

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def _check_stops(self) -> None:
        if self.stop is not None and not isinstance(self.stop, str | list | tuple):
            raise _wrong("stop", self.stop, "a string or a list of strings")
        if len(self.stop_strings) > MAX_STOPS:
            raise RequestError(f"has {len(self.stop_strings)} strings", field="stop", fix=f"give at most {MAX_STOPS}")
        for text in self.stop_strings:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
                raise _wrong("stop", text, f"a string of 1 to {MAX_STOP_CHARACTERS} characters")
        if self.stop_strings and not self.detokenize:
            raise RequestError("needs the text", field="stop", fix="set detokenize to true, or use stop_token_ids")
        ids = self.stop_token_ids
        if ids is not None and not isinstance(ids, list | tuple):
            raise _wrong("stop_token_ids", ids, "a list of token ids")
        if len(ids or ()) > MAX_STOPS:
            raise RequestError(f"has {len(ids or ())} token ids", field="stop_token_ids", fix=f"give at most {MAX_STOPS}")
        for token_id in ids or ():
            _check_integer("stop_token_ids", token_id, 0, MAX_INT)

    def _check_logit_bias(self) -> None:
        if self.logit_bias is not None and not isinstance(self.logit_bias, dict):
            raise _wrong("logit_bias", self.logit_bias, "a dictionary from token id to number")
        if len(self.logit_bias or ()) > MAX_LOGIT_BIASES:
            raise RequestError(f"has {len(self.logit_bias or ())} entries", field="logit_bias", fix=f"give at most {MAX_LOGIT_BIASES}")
        for token_id, bias in (self.logit_bias or {}).items():
            _check_integer("logit_bias", token_id, 0, MAX_INT)
            _check_number("logit_bias", bias, -100, 100)

    def _check_words(self) -> None:
        words = self.bad_words
        if words is not None and not isinstance(words, list | tuple):
            raise _wrong("bad_words", words, "a list of strings")
        if len(words or ()) > MAX_BAD_WORDS:
            raise RequestError(f"has {len(words or ())} strings", field="bad_words", fix=f"give at most {MAX_BAD_WORDS}")
        for word in words or ():
            if not isinstance(word, str) or not word.strip() or len(word) > MAX_BAD_WORD_CHARACTERS:
                raise _wrong("bad_words", word, f"strings of 1 to {MAX_BAD_WORD_CHARACTERS} characters, not all of them blanks")
        ids = self.allowed_token_ids
        if ids is not None and not (isinstance(ids, list | tuple) and ids):
            raise _wrong("allowed_token_ids", ids, "a list of at least one token id")
        for token_id in ids or ():
            _check_integer("allowed_token_ids", token_id, 0, MAX_INT)
        if self.truncate_prompt_tokens == 0:
            raise _wrong("truncate_prompt_tokens", 0, "at least 1, or -1 for what the context holds")


_INTEGERS = (
    ("n", 1, MAX_N),
    ("top_k", -1, MAX_INT),
    ("repeat_last_n", -1, MAX_INT),
    ("seed", -(2**63), MAX_INT),
    ("max_tokens", 1, MAX_INT),
    ("min_tokens", 0, MAX_INT),
    ("truncate_prompt_tokens", -1, MAX_INT),
    ("logprobs", -1, MAX_INT),
    ("prompt_logprobs", -1, MAX_INT),
    *INTEGERS,
)
_NUMBERS = (
    ("temperature", 0.0, 100.0),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    *NUMBERS,
)
_OPTIONAL = {field.name for field in fields(SamplingParams) if "None" in str(field.type)}


def _wrong(field: str, value: object, wanted: str) -> RequestError:
    return RequestError(f"is {value!r:.60}", field=field, fix=f"give {wanted}")


def _check_integer(field: str, value: object, lowest: int, highest: int) -> None:
    if value is None and field in _OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        limit = f"from {lowest} to {highest}" if highest < MAX_INT else f"of at least {lowest}"
        raise _wrong(field, value, f"a whole number {limit}")


def _check_number(field: str, value: object, lowest: float, highest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:  # NaN fails too
        raise _wrong(field, value, f"a number from {lowest:g} to {highest:g}")
