"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from cupola.runtime.errors import RequestError
from cupola.runtime.outputs import TokenLogprobs
from cupola.runtime.server.generation import Choice, EventStream, Generation, json_response, unless_gone
from cupola.runtime.server.logprobs import chat_logprobs, prompt_logprobs
from cupola.runtime.server.protocol import ChatRequest, Object
from cupola.runtime.server.record import RequestRecord, record_of
from cupola.runtime.server.service import Service
from cupola.runtime.server.structured import compile_grammar, structured_outputs_of


@dataclass(frozen=True)
class Chat:
    """A request on its way."""

    body: ChatRequest
    generation: Generation
    head: Object

    def whole(self) -> Object:
        """The answer, once the generation is finished."""
        choices = [self._choice(i, choice) for i, choice in enumerate(self.generation.choices)]
        answer = {**self.head, "object": "chat.completion", "choices": choices, "usage": self.generation.usage()}
        scores = self.generation.prompt_logprobs[0]
        return answer if scores is None else {**answer, "prompt_logprobs": prompt_logprobs(scores)}

    async def events(self) -> AsyncIterator[Object]:
        """The answer piece by piece; each choice's first says who speaks."""
        for index in range(len(self.generation.choices)):
            yield self._event(index, {"role": "assistant", "content": ""}, None)
        options = self.body.stream_options
        async for index, delta in self.generation:
            logprobs = self._logprobs(delta.logprobs)
            event = self._event(index, {"content": delta.text} if delta.text else {}, delta.finish_reason, logprobs)
            event["choices"][0]["stop_reason"] = delta.stop_reason
            if options and options.continuous_usage_stats:
                event["usage"] = self.generation.usage()
            if delta.text or delta.finish_reason or logprobs:
                yield event
        if options and options.include_usage:
            yield {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self.generation.usage()}

    def _event(self, index: int, delta: Object, finish_reason: str | None, logprobs: Object | None = None) -> Object:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def _choice(self, index: int, choice: Choice) -> Object:
        found = {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        return {**found, "token_ids": choice.token_ids} if self.body.return_token_ids else found

    def _logprobs(self, entries: list[TokenLogprobs] | None) -> Object | None:
        return chat_logprobs(entries or [], self.body.top_logprobs or 0) if self.body.logprobs else None


async def chat(service: Service, request: Request, body: ChatRequest) -> Response:
    """The answer to a request, whole or as events. Raises RequestError, ServerError, EngineError, TimeoutError."""
    record = record_of(request)
    answer = await _begin(service, record, body)
    if body.stream:
        return EventStream(answer.generation, record, answer.events())
    try:
        await unless_gone(request, answer.generation.finish())
        return json_response(answer.whole())
    finally:
        answer.generation.close()


async def _begin(service: Service, record: RequestRecord, body: ChatRequest) -> Chat:
    service.check_model(body.model)
    body.refuse_unsupported()
    if body.top_logprobs and not body.logprobs:
        raise RequestError("is given without logprobs", field="top_logprobs", fix="set logprobs to true")
    if body.chat_template is not None:
        raise RequestError("may not come with a request", field="chat_template", fix="leave it out: the model's own is used")
    _ = service.admission  # a server that can't answer should not render
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    params = body.sampling_params(service.defaults, max_tokens, logprobs, structured_outputs_of(body))
    text = await render(service, body)
    prompt = await service.encode(text, add_special_tokens=bool(body.add_special_tokens))
    grammar = await compile_grammar(service, params)
    head = {"id": f"chatcmpl-{record.request_id}", "created": int(time.time()), "model": service.config.served_model_name}
    generation = Generation(service, record, [prompt], params, priority=body.priority, cache_salt=body.cache_salt, grammar=grammar)
    return Chat(body, generation, head)


async def render(service: Service, body: ChatRequest) -> str:
    """The prompt that the model's template makes of the messages, the last one left open if it is to be continued. Raises RequestError."""
    template = service.need_chat_template()
    if not body.continue_final_message:
        return await asyncio.to_thread(template.render, body.messages, add_generation_prompt=body.add_generation_prompt)
    if body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set:
        raise RequestError("contradicts add_generation_prompt", field="continue_final_message", fix="set one of the two to false")
    text = await asyncio.to_thread(template.render, body.messages, add_generation_prompt=False)
    last = body.messages[-1].get("content")
    at = text.rfind(last.strip()) if isinstance(last, str) and last.strip() else -1
    if at < 0:
        raise RequestError("finds no text to continue", field="continue_final_message", fix="end with a message that has a text")
    assert isinstance(last, str)
    return text[: at + len(last.strip())]
