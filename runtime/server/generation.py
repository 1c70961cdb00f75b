"""One HTTP request's way through the engine, and the two forms of answer: a whole one, or a stream of events."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cupola.runtime.engine.outputs import TokenLogprobs
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import RequestError
from cupola.runtime.server import messages as m
from cupola.runtime.server.errors import ServerError, describe, error_object
from cupola.runtime.server.metrics import PromptProgress
from cupola.runtime.server.record import RequestRecord
from cupola.runtime.server.service import Service

T = TypeVar("T")
Check = Callable[[str], Awaitable[str | None]]
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients pass over


@dataclass
class Choice:
    """One completion as it has come so far."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    schema_error: str | None = None

    @property
    def faults(self) -> dict[str, str]:
        """Fields of an answer that report a fault; empty without one, so that clients see no unknown fields."""
        return {} if self.schema_error is None else {"schema_error": self.schema_error}

    def add(self, delta: m.CompletionDelta) -> None:
        """Takes in what is new."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or ()
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


@dataclass(frozen=True)
class Choices:
    """The model of a cascade that answers (`cascade.py`).

    Args:
        model: its name.
        confidence: the mean log-probability of the small model's first tokens, the least of all choices.
        num_rejected: tokens of the small model that were thrown away.
    """

    model: str
    confidence: float
    num_rejected: int


class Generation:
    """The engine's requests for the prompts of one HTTP request: choice i × n + j is completion j of prompt i. Must be closed.

    Args:
        check: says what is wrong with the text of a choice that is whole, or None; it is awaited before the choice's end is told.
        counts_output: whether what is generated counts; not if nobody asked for it, and the engine only can't do without.

    Raises:
        RequestError, ServerError: as `Service.submit`.
    """

    def __init__(
        self,
        service: Service,
        record: RequestRecord,
        prompts: Sequence[tuple[int, ...]],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        grammar: bytes | None = None,
        check: Check | None = None,
        counts_output: bool = True,
    ) -> None:
        self._service, self._record, self._n, self._counts_output = service, record, params.n, counts_output
        self.prompts, self.choices = prompts, [Choice() for _ in range(len(prompts) * params.n)]
        self.prompt_logprobs: list[list[TokenLogprobs | None] | None] = [None] * len(prompts)
        self.num_cached_tokens = self.num_draft_tokens = self.num_accepted_tokens = 0
        self._restriction, self._check = params.restriction, check
        self.choices_made: Choices | None = None
        self._held: deque[m.RequestDelta] = deque()  # that came, and were not yet asked for
        self.keep_alive = service.config.sse_keep_alive
        self._timer: asyncio.TimerHandle | None = None
        self._progress = [PromptProgress(record.arrival, len(prompt), params) for prompt in prompts]
        self._stream = service.submit(prompts, params, priority, cache_salt, grammar)
        record.resources.callback(self.close)  # if this object never gets to whoever would close it
        self._index_of = {request_id: i for i, request_id in enumerate(self._stream.request_ids)}
        self._timer = asyncio.get_running_loop().call_later(service.config.request_timeout, self._stream.put, TimeoutError())
        record.num_prompt_tokens = sum(map(len, prompts))

    async def __aiter__(self) -> AsyncIterator[tuple[int, m.CompletionDelta]]:
        """Yields the index of a choice and its new output. Raises RequestError, EngineError, TimeoutError."""
        async for delta in self._deltas():
            prompt = self._index_of[delta.request_id]
            self._observe(prompt, delta)
            for completion in delta.completions:
                index = prompt * self._n + completion.index
                if completion.error is not None:
                    raise RequestError(completion.error, field=self._restriction, fix="change or simplify it")
                self.choices[index].add(completion)
                if self._check is not None and completion.finish_reason == "stop":
                    self.choices[index].schema_error = await self._check(self.choices[index].text)
                yield index, completion
        self._finish()

    async def finish(self) -> None:
        """Waits for all choices. Raises as the iteration."""
        async for _ in self:
            pass

    async def first_logprobs(self, count: int) -> list[list[float]]:
        """Waits until each choice has so many tokens, or its end; gives the log-probabilities of its tokens so far, which were asked for.

        What has come is still there for the iteration. Raises as that.
        """
        found: list[list[float]] = [[] for _ in self.choices]
        waiting = set(range(len(found)))
        async for delta in self._stream:
            self._held.append(delta)
            for completion in delta.completions:
                index = self._index_of[delta.request_id] * self._n + completion.index
                found[index] += [next(iter(entry.values())).logprob for entry in completion.logprobs or ()]
                if completion.finish_reason is not None or len(found[index]) >= count:
                    waiting.discard(index)
            if not waiting:
                break
        return found

    def discard(self) -> int:
        """Closes it, to the metrics as one that another model answers. Returns how many tokens came."""
        for progress in self._progress:
            progress.finish_reasons = ["escalated"] * len(progress.finish_reasons)
        self.close()
        return sum(len(completion.token_ids) for delta in self._held for completion in delta.completions)

    async def _deltas(self) -> AsyncIterator[m.RequestDelta]:
        while self._held:
            yield self._held.popleft()
        async for delta in self._stream:
            yield delta

    def close(self) -> None:
        """Frees what is unfinished."""
        if self._timer is not None:
            self._timer.cancel()
        self._stream.close()
        for progress in self._progress:
            self._service.metrics.observe_end(progress, time.monotonic())

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens of all choices, as far as they have come."""
        return sum(len(choice.token_ids) for choice in self.choices) if self._counts_output else 0

    def usage(self) -> dict[str, Any]:
        """OpenAI's count of tokens, as far as the request has come."""
        num_prompt, num_output = sum(map(len, self.prompts)), self.num_output_tokens
        usage = {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }
        if self.num_draft_tokens:  # in the fields that OpenAI has for predicted outputs
            num_right, num_wrong = self.num_accepted_tokens, self.num_draft_tokens - self.num_accepted_tokens
            usage["completion_tokens_details"] = {"accepted_prediction_tokens": num_right, "rejected_prediction_tokens": num_wrong}
        if (made := self.choices_made) is not None:
            found = {"model": made.model, "confidence": round(made.confidence, 4), "rejected_tokens": made.num_rejected}
            usage["cascade_details"] = found if math.isfinite(made.confidence) else {**found, "confidence": None}
        return usage

    def _observe(self, prompt: int, delta: m.RequestDelta) -> None:
        now = time.monotonic()
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs[prompt] = delta.prompt_logprobs
        if delta.finished:
            self.num_cached_tokens += delta.num_cached_tokens
            self.num_draft_tokens += delta.num_draft_tokens
            self.num_accepted_tokens += delta.num_accepted_tokens
        self._service.metrics.observe(self._progress[prompt], now, delta)
        if self._record.first_token is None:
            self._record.first_token = self._progress[prompt].first_token

    def _finish(self) -> None:
        reasons = [choice.finish_reason or "" for choice in self.choices]
        self._record.finish_reasons = reasons
        self._record.num_schema_errors = sum(choice.schema_error is not None for choice in self.choices)
        self._record.num_cached_tokens = self.num_cached_tokens
        self._record.num_output_tokens = self.num_output_tokens
        self._record.answered_by = None if self.choices_made is None else self.choices_made.model


@dataclass(frozen=True)
class EventForm:
    """How a stream is written.

    Args:
        encode: an event as bytes.
        failed: the event that says what went wrong, from status, message, field and code.
        end: what stands at the end.
    """

    encode: Callable[[dict[str, Any]], bytes]
    failed: Callable[[int, str, str | None, str | None], dict[str, Any]]
    end: bytes = b""


class Answer(Protocol):
    """A request on its way: its generation, and the two forms of what comes of it."""

    @property
    def form(self) -> EventForm:
        """How its events are written."""
        ...

    @property
    def generation(self) -> Generation:
        """The generation that the answer is made of."""
        ...

    def whole(self) -> dict[str, Any]:
        """The answer, once the generation is finished."""
        ...

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """The answer piece by piece."""
        ...


async def respond(request: Request, record: RequestRecord, begin: Coroutine[Any, Any, Answer], *, stream: bool) -> Response:
    """The answer that `begin` prepares, whole or as events. Raises RequestError, ServerError, EngineError, TimeoutError."""
    answer = await unless_gone(request, begin)  # preparing may take seconds: a template, a grammar, a long text
    if stream:
        return EventStream(answer, record)
    try:
        await unless_gone(request, answer.generation.finish())
        return json_response(answer.whole())
    finally:
        answer.generation.close()


class EventStream(Response):
    """Server-sent events of a generation, which is closed whatever happens; so it is when the client goes away.

    After `keep_alive` seconds without an event, if that isn't 0, comes a comment.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, record: RequestRecord) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._generation, self._record, self._events, self._form = answer.generation, record, answer.events(), answer.form
        self._keep_alive, self._num_sent = answer.generation.keep_alive, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the end, or until the client has gone."""
        tasks = [asyncio.ensure_future(self._send_all(send)), asyncio.ensure_future(wait_until_gone(receive))]
        waiting = [asyncio.ensure_future(self._send_comments(send))] if self._keep_alive else []
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                self._record.status = 499
        finally:
            self._generation.close()
            for task in (*tasks, *waiting):
                task.cancel()
            results = await asyncio.gather(*tasks, *waiting, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                self._num_sent += 1
                await send({"type": "http.response.body", "body": self._form.encode(event), "more_body": True})
        except Exception as error:  # noqa: BLE001  the status is sent: what went wrong can only be an event
            status, message, at, code = describe(error)
            self._record.fail(status, error)
            event = self._form.failed(status, message, at, code)
            await send({"type": "http.response.body", "body": self._form.encode(event), "more_body": True})
        await send({"type": "http.response.body", "body": self._form.end, "more_body": False})

    async def _send_comments(self, send: Send) -> None:
        while True:
            num_sent = self._num_sent
            await asyncio.sleep(self._keep_alive)
            if num_sent == self._num_sent:
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})


def encode_event(event: dict[str, Any]) -> bytes:
    """An event as a stream has it."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def encode_named_event(event: dict[str, Any]) -> bytes:
    """An event whose name is its type."""
    return f"event: {event['type']}\n".encode() + encode_event(event)


COMPLETION_EVENTS = EventForm(encode_event, error_object, DONE)


def json_response(body: dict[str, Any]) -> Response:
    """A whole answer."""
    return Response(msgspec.json.encode(body), media_type="application/json")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`; if the client goes away before, cancels it and raises ServerError, which nobody reads."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(wait_until_gone(request.receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ServerError(499, "the client has gone away")
        return tasks[0].result()  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait_until_gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
