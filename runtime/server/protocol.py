"""The requests' fields: OpenAI's API, and those that vLLM and llama-server add to it.

Types are strict (a bool is no number, but 2.0 is a whole one), null means the default, and `foreign_fields.py` says what becomes of
fields that are not here. Ranges are checked by `SamplingParams`, which knows them for every other interface too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from cupola.runtime.engine.generation_defaults import add_model_stops
from cupola.runtime.engine.samplers.params import ChainParams
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import RequestError
from cupola.runtime.server.foreign_fields import settle_fields
from cupola.runtime.structured.structured_outputs import StructuredOutputs

CHAIN_FIELDS = tuple(field.name for field in fields(ChainParams))
MAX_SEQUENCES = 1024  # of one request: prompts times completions
UNLIMITED = -1  # as max_tokens


def _whole(value: object) -> object:
    """2 for 2.0: languages with one kind of number write whole ones so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Strings = Annotated[list[str], Field(fail_fast=True)]
Object = dict[str, Any]


class Body(BaseModel):
    """Any request's body."""

    model_config = ConfigDict(strict=True, extra="ignore")
    also_known: ClassVar[frozenset[str]] = frozenset()  # fields that may be given and concern something else

    @model_validator(mode="before")
    @classmethod
    def _settle_fields(cls, given: object) -> object:
        known = {field.alias or name for name, field in cls.model_fields.items()} | cls.also_known
        return settle_fields(given, known) if isinstance(given, Mapping) else given


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ResponseFormat(Body):
    """OpenAI's `response_format`; llama-server has the schema itself under `schema`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: Object | None = None
    plain_schema: Object | bool | None = Field(None, alias="schema")


class Sampling(Body):
    """Sampling fields of both completions endpoints. Those left out are as the model's generation_config.json has them."""

    model: str | None = None
    n: Integer = 1
    max_tokens: Integer | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | Strings | None = None
    seed: Integer | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    # vLLM's and llama-server's
    top_k: Integer | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: Integer | None = None
    min_tokens: Integer | None = None
    ignore_eos: bool = False
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: Integer | None = None
    bad_words: Strings | None = None
    allowed_token_ids: TokenIds | None = None
    truncate_prompt_tokens: Integer | None = None
    return_tokens_as_token_ids: bool = False
    priority: Integer = Field(0, ge=-(2**31), lt=2**31, description="Lower goes first.")
    cache_salt: str | None = Field(None, min_length=1, max_length=64, description="Only requests of one salt share cached K/V.")
    add_special_tokens: bool | None = None
    return_token_ids: bool = False
    guided_json: str | Object | bool | None = None
    guided_regex: str | None = None
    guided_choice: Strings | None = None
    guided_grammar: str | None = None
    structured_outputs: Object | None = None
    json_schema: str | Object | bool | None = Field(None, description="A schema that the answer must follow.")
    grammar: str | None = Field(None, description="A grammar in GBNF or in Lark's form that the answer must follow; an empty one is none.")
    best_of: Integer | None = None
    # llama-server's samplers
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: Integer | None = None
    dry_penalty_last_n: Integer | None = None
    dry_sequence_breakers: Strings | None = None
    mirostat: Integer | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    top_n_sigma: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    samplers: str | Strings | None = None

    def refuse_unsupported(self) -> None:
        """Raises RequestError for what would change the answer and isn't done."""
        if self.best_of is not None and self.best_of != self.n:
            raise RequestError("is not supported", field="best_of", fix="leave it out, or give what n is")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("can't be streamed", field="prompt_logprobs", fix="set stream to false, or leave it out")
        if self.stream_options is not None and not self.stream:
            raise RequestError("is given without stream", field="stream_options", fix="set stream to true, or leave it out")

    def sampling_params(
        self,
        defaults: SamplingParams,
        max_tokens: Integer | None,
        logprobs: Integer | None,
        structured: StructuredOutputs | None,
        *,
        skip_special_tokens: bool,
    ) -> SamplingParams:
        """The engine's parameters. Raises RequestError naming the field and the fix."""
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repeat_last_n": self.repeat_last_n,
            "min_tokens": self.min_tokens,
        }
        chosen: dict[str, Any] = {name: getattr(defaults, name) if value is None else value for name, value in given.items()}
        samplers: dict[str, Any] = {name: value for name in CHAIN_FIELDS if (value := getattr(self, name)) is not None}
        params = SamplingParams(
            **chosen,
            **samplers,
            n=self.n,
            max_tokens=None if max_tokens == UNLIMITED else max_tokens,
            stop=self.stop,
            seed=self.seed,
            logit_bias=self._logit_bias(),
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            ignore_eos=self.ignore_eos,
            stop_token_ids=self.stop_token_ids,
            bad_words=self.bad_words,
            allowed_token_ids=self.allowed_token_ids,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=skip_special_tokens,
            structured_outputs=structured,
        )
        return add_model_stops(params, defaults)

    def _logit_bias(self) -> dict[int, float] | None:
        """OpenAI has token ids as JSON's keys, which are strings."""
        for key in self.logit_bias or ():
            if not (key.isascii() and key.isdecimal() and len(key) < 19):
                raise RequestError(f"has the key {key!r:.60}", field="logit_bias", fix="give token ids as keys")
        return None if self.logit_bias is None else {int(key): bias for key, bias in self.logit_bias.items()}


class CompletionRequest(Sampling):
    """`POST /v1/completions`."""

    prompt: str | TokenIds | Strings | Annotated[list[TokenIds], Field(fail_fast=True)]
    max_tokens: Integer | None = 16
    echo: bool = False
    suffix: str | None = Field(None, description="What comes after the answer, for models that fill in the middle.")
    logprobs: Integer | None = None

    @property
    def is_silent(self) -> bool:
        """True if only the prompt is wanted again. The engine then generates a token that is thrown away."""
        return self.max_tokens == 0

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids. Raises RequestError."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        if not 0 < len(prompt) * self.n <= MAX_SEQUENCES:
            problem, fix = f"has {len(prompt)} entries for {self.n} completions each", f"ask for 1 to {MAX_SEQUENCES} completions in all"
            raise RequestError(problem, field="prompt", fix=fix)
        return list(prompt)


class ChatPrompt(Body):
    """The fields that make a prompt of a chat, beside its messages."""

    tools: Annotated[list[Object], Field(fail_fast=True)] | None = None
    tool_choice: Literal["auto", "none", "required"] | Object | None = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = Field(None, description="The name of the template, for models that have several.")
    chat_template_kwargs: Object | None = Field(None, description="Further variables of the template, such as enable_thinking.")
    documents: Annotated[list[Object], Field(fail_fast=True)] | None = Field(None, description='Each with a "title" and a "text".')
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enable_thinking: bool | None = Field(None, description="As in chat_template_kwargs.")


class ChatRequest(Sampling, ChatPrompt):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Object], Field(fail_fast=True)]
    include_reasoning: bool = Field(True, description="Whether the answer comes with what the model thought before.")
    thinking_token_budget: Integer | None = Field(None, ge=-1, lt=2**31, description="Tokens of thinking at most; -1 is no limit.")
    max_completion_tokens: Integer | None = Field(None, ge=-1)
    logprobs: bool = False
    top_logprobs: Integer | None = Field(None, ge=0)
    echo: bool = Field(False, description="Whether the answer begins with the last message, if that is the assistant's too.")

    @property
    def token_limit(self) -> int | None:
        """The most tokens that the answer may have. Raises RequestError."""
        if self.max_completion_tokens == 0:
            raise RequestError("is 0", field="max_completion_tokens", fix=f"give at least 1, or {UNLIMITED} for as many as there can be")
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class EmbeddingRequest(BaseModel):
    """`POST /v1/embeddings`; refused, whatever it asks."""

    model: str | None = None
    input: str | TokenIds | Strings | Annotated[list[TokenIds], Field(fail_fast=True)]


class TokenizeRequest(ChatPrompt):
    """`POST /tokenize`: a text, or a chat exactly as `/v1/chat/completions` makes a prompt of it.

    A whole request to that route may be given: what only concerns the answer is ignored.
    """

    also_known: ClassVar[frozenset[str]] = frozenset(ChatRequest.model_fields)
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Object], Field(fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: TokenIds
    skip_special_tokens: bool = False
