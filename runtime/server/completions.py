"""`POST /v1/completions`: text that goes on from prompts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response

from cupola.runtime.engine.outputs import TokenLogprobs
from cupola.runtime.errors import RequestError
from cupola.runtime.server.cascade import begin_with
from cupola.runtime.server.fill_in_the_middle import middle_prompt
from cupola.runtime.server.generation import COMPLETION_EVENTS, Choice, EventForm, Generation, respond
from cupola.runtime.server.logprobs import CompletionLogprobs, TokenNames, prompt_logprobs
from cupola.runtime.server.protocol import CompletionRequest, Object
from cupola.runtime.server.record import RequestRecord, record_of
from cupola.runtime.server.service import Service
from cupola.runtime.server.structured import structured_outputs_of


@dataclass(frozen=True)
class Completion:
    """A request on its way; `texts` and `first_tokens` of its prompts are there for `echo`, which says them again."""

    body: CompletionRequest
    generation: Generation
    head: Object
    names: TokenNames
    texts: tuple[str, ...] = ()
    first_tokens: tuple[str, ...] = ()
    form: ClassVar[EventForm] = COMPLETION_EVENTS

    @property
    def _n(self) -> int:
        return self.body.n

    def whole(self) -> Object:
        """The answer, once the generation is finished."""
        choices = [self._choice(i, choice) for i, choice in enumerate(self.generation.choices)]
        return {**self.head, "choices": choices, "usage": self.generation.usage()}

    async def events(self) -> AsyncIterator[Object]:
        """The answer piece by piece."""
        writers = [self._logprobs_writer() for _ in self.generation.choices]
        unechoed, silent = set(range(len(writers))) if self.body.echo else set(), set(range(len(writers)))
        options = self.body.stream_options
        async for index, delta in self.generation:
            text = delta.text
            if index in unechoed:
                unechoed.remove(index)
                text = self.texts[index // self._n] + text
            event: Object = {
                "index": index,
                "text": text,
                "logprobs": None if (writer := writers[index]) is None else writer.write(delta.logprobs or []),
                "finish_reason": delta.finish_reason,
                "stop_reason": delta.stop_reason,
                **self.generation.choices[index].faults,
            }
            if self.body.return_token_ids:
                event["token_ids"] = delta.token_ids
                if index in silent:
                    event["prompt_token_ids"] = self.generation.prompts[index // self._n]
            silent.discard(index)
            usage = {"usage": self.generation.usage()} if options and options.continuous_usage_stats else {}
            yield {**self.head, "choices": [event], **usage}
        if options and options.include_usage:
            yield {**self.head, "choices": [], "usage": self.generation.usage()}

    def _choice(self, index: int, choice: Choice) -> Object:
        prompt = index // self._n
        echoed, scores = "", self.generation.prompt_logprobs[prompt]
        entries: list[TokenLogprobs | None] = list(choice.logprobs)
        if self.body.echo:
            echoed, entries = self.texts[prompt], [*(scores or ()), *entries]
        silent, num_echoed = self.body.is_silent, len(entries) - len(choice.logprobs)
        writer, first_token = self._logprobs_writer(), self.first_tokens[prompt] if self.body.echo else ""
        found: Object = {
            "index": index,
            "text": echoed if silent else echoed + choice.text,
            "logprobs": writer and writer.write(entries[:-1] if silent else entries, num_echoed=num_echoed, first_token=first_token),
            "finish_reason": "length" if silent else choice.finish_reason,
            "stop_reason": choice.stop_reason,
            **choice.faults,
        }
        if self.body.prompt_logprobs is not None and scores is not None:
            found["prompt_logprobs"] = prompt_logprobs(scores)
        if self.body.return_token_ids:
            found["token_ids"], found["prompt_token_ids"] = [] if silent else choice.token_ids, self.generation.prompts[prompt]
        return found

    def _logprobs_writer(self) -> CompletionLogprobs | None:
        skips = self.body.skip_special_tokens
        return None if self.body.logprobs is None else CompletionLogprobs(self.body.logprobs, self.names, skip_special_tokens=skips)


async def complete(service: Service, request: Request, body: CompletionRequest) -> Response:
    """The answer to a request, whole or as events. Raises RequestError, ServerError, EngineError, TimeoutError."""
    record = record_of(request)
    return await respond(request, record, begin_with(service, body, lambda chosen: _begin(chosen, record, body)), stream=body.stream)


async def _begin(service: Service, record: RequestRecord, body: CompletionRequest) -> Completion:
    model = service.check_model(body.model)
    body.refuse_unsupported()
    if body.suffix and body.echo:
        raise RequestError("can't be given with suffix", field="echo", fix="set echo to false")
    if body.echo and body.stream and body.logprobs is not None:
        raise RequestError("can't be streamed with logprobs", field="echo", fix="set stream to false")
    if body.max_tokens == 0 and (not body.echo or body.stream):
        raise RequestError("is 0", field="max_tokens", fix="give at least 1, or 0 with echo and without stream")
    structured = structured_outputs_of(body)
    max_tokens = 1 if body.max_tokens == 0 else body.max_tokens
    params = body.sampling_params(service.defaults, max_tokens, body.logprobs, structured, skip_special_tokens=body.skip_special_tokens)
    if body.echo and body.logprobs is not None and body.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=body.logprobs)
    special = True if body.add_special_tokens is None else body.add_special_tokens
    given = body.prompts()
    asked = [_infill(service, prompt, body.suffix) for prompt in given] if body.suffix else given
    prompts = [await service.encode(prompt, params, add_special_tokens=special) for prompt in asked]
    grammar, check = await service.compile_grammar(params), await service.schema_check(structured)
    head = {
        "id": f"cmpl-{record.request_id}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    said = given if body.truncate_prompt_tokens is None else prompts
    texts = [_text(service, prompt) for prompt in said] if body.echo else []
    first_tokens = [_text(service, prompt[:1]) for prompt in prompts] if body.echo else []
    generation = Generation(
        service,
        record,
        prompts,
        params,
        priority=body.priority,
        cache_salt=body.cache_salt,
        grammar=grammar,
        check=check,
        counts_output=not body.is_silent,
    )
    names = TokenNames(service.tokenizer, body.return_tokens_as_token_ids)
    return Completion(body, generation, head, names, tuple(texts), tuple(first_tokens))


def _infill(service: Service, prompt: str | Sequence[int], suffix: str) -> str:
    if not isinstance(prompt, str):
        raise RequestError("has token ids, which can't be given with suffix", field="prompt", fix="give text")
    return middle_prompt(service.added_tokens, prompt, suffix)


def _text(service: Service, prompt: str | Sequence[int]) -> str:
    return prompt if isinstance(prompt, str) else service.need_tokenizer("echo").decode(prompt, skip_special_tokens=False)
