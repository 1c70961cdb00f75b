"""`POST /v1/chat/completions`: the next message of a conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response

from cupola.runtime.engine.outputs import TokenLogprobs
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import RequestError
from cupola.runtime.server.cascade import begin_with
from cupola.runtime.server.chat_plan import ChatPlan, plan_prompt
from cupola.runtime.server.generation import COMPLETION_EVENTS, Choice, EventForm, Generation, respond
from cupola.runtime.server.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from cupola.runtime.server.protocol import UNLIMITED, ChatRequest, Object
from cupola.runtime.server.record import RequestRecord, record_of
from cupola.runtime.server.service import Service
from cupola.runtime.server.structured import structured_outputs_of
from cupola.runtime.tool_calls.plan import ToolPlan


@dataclass(frozen=True)
class Chat:
    """A request on its way. `plan` reads thinking and tool calls out of what the model says, which begins within
    its thinking if it `thinks`; `echoed` is what each answer begins with."""

    body: ChatRequest
    plan: ChatPlan
    generation: Generation
    head: Object
    names: TokenNames
    thinks: bool = False
    echoed: str = ""
    form: ClassVar[EventForm] = COMPLETION_EVENTS

    def whole(self) -> Object:
        """The answer, once the generation is finished."""
        choices = [self._choice(i, choice) for i, choice in enumerate(self.generation.choices)]
        answer = {**self.head, "object": "chat.completion", "choices": choices, "usage": self.generation.usage()}
        if self.body.return_token_ids:
            answer["prompt_token_ids"] = self.generation.prompts[0]
        scores = self.generation.prompt_logprobs[0]
        return answer if scores is None else {**answer, "prompt_logprobs": prompt_logprobs(scores)}

    async def events(self) -> AsyncIterator[Object]:
        """The answer piece by piece; each choice's first says who speaks, and comes no earlier than there is something to say."""
        silent = set(range(len(self.generation.choices)))
        options = self.body.stream_options
        streams = [self.plan.open_stream(thinks=self.thinks, shown=self.body.include_reasoning) for _ in self.generation.choices]
        async for index, delta in self.generation:
            stream = streams[index]
            found = stream.push(delta.text) + (stream.finish() if delta.finish_reason else [])
            events = [self._event(index, said.as_openai()) for said in found]
            if delta.finish_reason or ((delta.logprobs or self.body.return_token_ids) and not events):
                events.append(self._event(index, {}))
            if events:
                first = events[0]["choices"][0]
                first["logprobs"] = self._logprobs(delta.logprobs)
                if self.body.return_token_ids:
                    first["token_ids"] = delta.token_ids
                    if len(silent) == len(streams):
                        events[0]["prompt_token_ids"] = self.generation.prompts[0]
                if index in silent:
                    silent.discard(index)
                    first["delta"] = self._begin(first["delta"])
            if delta.finish_reason:
                events[-1]["choices"][0] |= {
                    "finish_reason": stream.finish_reason(delta.finish_reason),
                    "stop_reason": delta.stop_reason,
                    **self.generation.choices[index].faults,
                }
            for event in events:
                yield {**event, "usage": self.generation.usage()} if options and options.continuous_usage_stats else event
        if options and options.include_usage:
            yield {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self.generation.usage()}

    def _event(self, index: int, delta: Object) -> Object:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def _begin(self, delta: Object) -> Object:
        """An answer's first delta, or its only message."""
        return {"role": "assistant", **delta, "content": self.echoed + (delta.get("content") or "")}

    def _choice(self, index: int, choice: Choice) -> Object:
        answer = self.plan.parse(choice.text, thinks=self.thinks, shown=self.body.include_reasoning)
        said = answer.as_openai()
        found = {
            "index": index,
            "message": {**(self._begin(said) if self.echoed else said), "refusal": None},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": answer.finish_reason(choice.finish_reason or ""),
            "stop_reason": choice.stop_reason,
            **choice.faults,
        }
        return {**found, "token_ids": choice.token_ids} if self.body.return_token_ids else found

    def _logprobs(self, entries: list[TokenLogprobs] | None) -> Object | None:
        return chat_logprobs(entries or [], self.body.top_logprobs or 0, self.names) if self.body.logprobs else None


async def chat(service: Service, request: Request, body: ChatRequest) -> Response:
    """The answer to a request, whole or as events. Raises RequestError, ServerError, EngineError, TimeoutError."""
    record = record_of(request)
    return await respond(request, record, begin(service, record, body), stream=body.stream)


async def begin(service: Service, record: RequestRecord, body: ChatRequest) -> Chat:
    """Starts the generation of an answer, which must be closed; of a cascade's, once it is known who answers.

    Raises:
        RequestError, ServerError.
    """
    return await begin_with(service, body, lambda chosen: _begin(chosen, record, body))


async def _begin(service: Service, record: RequestRecord, body: ChatRequest) -> Chat:
    model = service.check_model(body.model)
    body.refuse_unsupported()
    if body.top_logprobs and not body.logprobs:
        raise RequestError("is given without logprobs", field="top_logprobs", fix="set logprobs to true")
    _ = service.validator  # a server that can't answer should not render
    plan = plan_prompt(service, body, body.messages)
    structured = structured_outputs_of(body, plan.tools.constraint)
    budget = None if body.thinking_token_budget == UNLIMITED else body.thinking_token_budget
    plan.check_budget(budget)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    skip = body.skip_special_tokens and plan.tools.skip_special_tokens
    params = body.sampling_params(service.defaults, body.token_limit, logprobs, structured, skip_special_tokens=skip)
    text = await plan.render(service, body)
    thinks = plan.thinks(text, body)
    params = replace(params, structured_outputs=plan.after_thinking(structured, thinks=thinks, budget=budget))
    prompt = await service.encode(text, params, add_special_tokens=bool(body.add_special_tokens))
    grammar, check = await service.compile_grammar(params), await service.schema_check(structured)
    head = {"id": f"chatcmpl-{record.request_id}", "created": int(time.time()), "model": model}
    generation = Generation(
        service,
        record,
        [prompt],
        params,
        priority=body.priority,
        cache_salt=body.cache_salt,
        grammar=grammar,
        check=check and (lambda said: check(plan.without_thinking(said, thinks=thinks))),
    )
    names = TokenNames(service.tokenizer, body.return_tokens_as_token_ids)
    return Chat(body, plan, generation, head, names, thinks, _echoed(plan.tools) if body.echo else "")


def _echoed(plan: ToolPlan) -> str:
    """The text of the last message, if it is the assistant's."""
    last = plan.messages[-1]
    content = last.get("content")
    return content if last["role"] == "assistant" and isinstance(content, str) else ""


async def apply_template(service: Service, body: ChatRequest) -> str:
    """The prompt that a request's messages become. Raises RequestError, ServerError."""
    service.check_model(body.model)
    return await plan_prompt(service, body, body.messages).render(service, body)


async def count_prompt_tokens(service: Service, body: ChatRequest) -> int:
    """How many tokens that prompt has. Raises RequestError, ServerError."""
    params = SamplingParams(truncate_prompt_tokens=body.truncate_prompt_tokens)
    return len(await service.encode(await apply_template(service, body), params, add_special_tokens=bool(body.add_special_tokens)))
