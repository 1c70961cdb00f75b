"""The service that all routes share: the model as it is known without an engine, the engine's process, and limits on the load."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.engine.generation_defaults import default_sampling_params
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.validator import Prompt, Validator
from cupola.runtime.errors import CupolaError, EngineError, OptionError, RequestError
from cupola.runtime.server import messages as m
from cupola.runtime.server.artifact_watch import ArtifactWatch
from cupola.runtime.server.engine_client import EngineClient, Health, RequestStream
from cupola.runtime.server.errors import ServerError
from cupola.runtime.server.logs import log
from cupola.runtime.server.metrics import Metrics
from cupola.runtime.structured.grammar import MAX_AT_ONCE, GrammarCompiler
from cupola.runtime.structured.schema_checker import SchemaChecker
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from cupola.runtime.text.chat_template import ChatTemplate, Message
from cupola.runtime.text.tokenizer import Tokenizer, load_chat_template, load_tokenizer

MAX_WAITING_GRAMMARS = 32
MAX_FAILED_STARTS = 6  # of an engine that ran before, one after the other
MAX_PAUSE_SECONDS = 15.0  # between two of them
MAY_BE_0 = ("max_queue", "shutdown_timeout", "sse_keep_alive")
ORIGIN = re.compile(r"[a-zA-Z][\w+.-]*://[\w.:\[\]-]+", re.ASCII)
ROOT_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)


@dataclass(frozen=True)
class ServerConfig:
    """How a server serves. Durations are in seconds; sizes in bytes.

    Args:
        served_model_names: by which requests may call the model; the first is its own.
        api_keys: one of which clients must send; none asks for none.
        allowed_origins: of web pages that browsers let use the server, "*" for all.
        root_path: the path under which a proxy shows the server, such as "/llm".
        chat_template: a file that stands in for the model's own templates.
        sse_keep_alive: after so long without anything to send, a stream sends a comment; 0 is never.
        ignored_fields: of requests, which may have any value.
        stands_in_for: names of another model, in whose place this one answers under its own name.

    Raises:
        OptionError: naming the field and the fix.
    """

    served_model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    max_queue: int = 256
    request_timeout: float = 600.0
    shutdown_timeout: float = 30.0
    send_timeout: float = 60.0
    stall_timeout: float = 20.0
    max_body_bytes: int = 16 << 20
    ignored_fields: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    root_path: str = ""
    chat_template: Path | None = None
    sse_keep_alive: float = 30.0
    allowed_hosts: tuple[str, ...] = ("*",)
    read_timeout: float = 30.0
    max_connections: int = 1024
    stands_in_for: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.served_model_names and all(self.served_model_names)):
            raise OptionError("is empty", field="served_model_name", fix="give a name")
        if not all(key and key.isascii() and key.isprintable() for key in self.api_keys):
            raise OptionError("is empty or not plain text", field="api_key", fix="give printable ASCII characters")
        for origin in self.allowed_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise OptionError(f"is {origin!r:.60}", field="allowed_origins", fix='give origins such as "https://example.org", or "*"')
        if self.root_path and not ROOT_PATH.fullmatch(self.root_path):
            raise OptionError(f"is {self.root_path!r:.60}", field="root_path", fix='give a path such as "/llm"')
        for name in ("request_timeout", "send_timeout", "read_timeout", "stall_timeout", "max_body_bytes", *MAY_BE_0):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and name not in MAY_BE_0):
                raise OptionError(f"is {value!r:.60}", field=name, fix="give a positive number")

    @property
    def served_model_name(self) -> str:
        """The model's own name."""
        return self.served_model_names[0]


class Service:
    """A model behind an engine.

    Args:
        start: how the engine's process loads the model.

    Raises:
        ArtifactError: if the artifact is damaged.
    """

    def __init__(self, artifact: Artifact, start: m.Start, config: ServerConfig) -> None:
        self.artifact, self.config, self._start = artifact, config, start
        self.tokenizer = load_tokenizer(artifact, is_bounded=True)
        self.chat_template = load_chat_template(artifact, self.tokenizer, config.chat_template)
        self.special_tokens = () if self.tokenizer is None else self.tokenizer.special_tokens
        self.added_tokens = frozenset() if self.tokenizer is None else self.tokenizer.added_tokens
        self.defaults = default_sampling_params(artifact)
        self._grammars = (
            None
            if self.tokenizer is None
            else GrammarCompiler(self.tokenizer.file, artifact.manifest.model.vocab_size, artifact.manifest.model.stop_token_ids)
        )
        self._grammar_threads, self._num_grammars = ThreadPoolExecutor(MAX_AT_ONCE, "grammar"), 0
        self._renderer, self._num_rendering = ThreadPoolExecutor(1, "render"), 0
        self._schemas = SchemaChecker()
        self.metrics = Metrics(config.served_model_name)
        self.created = int(time.time())
        self.draining = False
        self.failure: CupolaError | None = None  # why the server gives up
        self.stopped = asyncio.Event()
        self._client = self._new_client()
        self._ready: m.Ready | None = None
        self._validator: Validator | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._artifact_watch = ArtifactWatch(artifact)

    async def open(self) -> None:
        """Starts the engine, and starts it again if it dies once it was ready."""
        self._tasks = [asyncio.create_task(self._unless_it_fails(task)) for task in (self._keep_alive(), self._watch_artifact())]

    async def close(self) -> None:
        """Ends the engine."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await self._client.close()
        self._grammar_threads.shutdown(wait=False, cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()
        self._schemas.close()
        if self.chat_template is not None:
            self.chat_template.close()
        if self.tokenizer is not None:
            self.tokenizer.close()

    def give_up(self) -> None:
        """Ends what is unfinished."""
        self._client.fail_all(ServerError(503, "the server is shutting down", code="shutting_down"))

    @property
    def max_num_seqs(self) -> int:
        """Sequences that run together."""
        return self._start.config.max_num_seqs if self._ready is None else self._ready.max_num_seqs

    @property
    def health(self) -> Health:
        """How the engine is."""
        return self._client.health

    @property
    def services(self) -> tuple[Service, ...]:
        """All that answer, each with its model: a cascade has two."""
        return (self,)

    @property
    def max_length(self) -> int:
        """Tokens that a sequence may have. Raises ServerError while the model is loading."""
        return self.validator.max_length

    @property
    def validator(self) -> Validator:
        """Checks requests. Raises ServerError, a 503, if the engine can't take any now."""
        if self.draining:
            raise ServerError(503, "the server is shutting down", code="shutting_down")
        if self._validator is None or self.health in (Health.LOADING, Health.DEAD):
            raise ServerError(503, "the model is still loading", code="loading", retry_after=1)
        return self._validator

    def check_model(self, name: str | None) -> str:
        """The name that an answer gives the model: the one that its request has, or the model's own. Raises ServerError, a 404."""
        names = self.config.served_model_names
        if name in self.config.stands_in_for:
            return names[0]
        if name is not None and name not in names:
            problem = f"the model {name!r:.200} does not exist here; served is {', '.join(map(repr, names))}"
            raise ServerError(404, problem, code="model_not_found", field="model")
        return names[0] if name is None else name

    def check_any_model(self, name: str | None) -> None:
        """Checks that one of the models that answer is called so. Raises as `check_model`."""
        if not any(name in one.config.served_model_names for one in self.services):
            self.check_model(name)

    def need_tokenizer(self, field: str) -> Tokenizer:
        """The tokenizer. Raises RequestError if there is none."""
        if self.tokenizer is None:
            raise RequestError("needs a tokenizer, which this artifact has not", field=field, fix="use token ids")
        return self.tokenizer

    def need_chat_template(self) -> ChatTemplate:
        """The chat template. Raises RequestError if there is none."""
        if self.chat_template is None:
            raise RequestError("the model has no chat template", field="messages", fix="use /v1/completions")
        return self.chat_template

    async def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
        name: str | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The text that the model's template makes of a chat. Raises RequestError, or ServerError, a 429, if too many wait for it.

        A template may take its whole time each time: chats wait for one another in a thread of their own, and nobody else for them.
        """
        render = functools.partial(
            self.need_chat_template().render,
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            documents=documents,
            name=name,
            variables=variables,
        )
        if self._num_rendering > self.config.max_queue:
            raise ServerError(429, "too many chats are waiting", code="queue_full", retry_after=5)
        self._num_rendering += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._renderer, render)
        finally:
            self._num_rendering -= 1

    async def encode(self, prompt: Prompt, params: SamplingParams, *, add_special_tokens: bool) -> tuple[int, ...]:
        """A prompt's token ids, checked. A long text does not keep other requests waiting. Raises RequestError."""
        num_kept = self.validator.num_kept(params)
        encode = functools.partial(self.validator.encode, prompt, add_special_tokens=add_special_tokens, num_kept=num_kept)
        if isinstance(prompt, str) and self.tokenizer is not None and not self.tokenizer.is_quick(prompt):
            return await asyncio.to_thread(encode)
        return encode()

    async def compile_grammar(self, params: SamplingParams) -> bytes | None:
        """The grammar of a request that wants structure, checked. That may take seconds: in threads of its own, others do not wait.

        Raises:
            RequestError: naming the field and what is wrong with it.
            ServerError: a 429, if too many are waiting for theirs.
        """
        if params.structured_outputs is None:
            return None
        if self._grammars is None:
            raise RequestError("needs a tokenizer, which this artifact has not", field="structured_outputs", fix="leave it out")
        if self._num_grammars >= MAX_WAITING_GRAMMARS:
            raise ServerError(429, "too many grammars are being compiled", code="queue_full", retry_after=5)
        self._num_grammars += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._grammar_threads, self._grammars.compile, params.structured_outputs)
        finally:
            self._num_grammars -= 1

    async def schema_check(self, structured_outputs: StructuredOutputs | None) -> Callable[[str], Awaitable[str | None]] | None:
        """A function that finds schema errors in a text; None if the grammar enforces the schema. Raises RequestError, EngineError."""
        if structured_outputs is None:
            return None
        schema = await asyncio.to_thread(self._schemas.prepare, structured_outputs)
        return None if schema is None else functools.partial(self._find_schema_error, schema)

    async def _find_schema_error(self, schema: str, text: str) -> str | None:
        try:
            return await asyncio.to_thread(self._schemas.find_error, schema, text)
        except EngineError as error:  # the answer is there all the same
            return f"can't be checked: {error}"

    def submit(
        self, prompts: Sequence[tuple[int, ...]], params: SamplingParams, priority: int, cache_salt: str | None, grammar: bytes | None
    ) -> RequestStream:
        """Hands checked prompts to the engine. Raises RequestError, or ServerError, a 429, if too much is waiting."""
        self.validator.check_params(params)
        self._check_room(len(prompts) * params.n)
        # A salt may be a secret or a name: only what can't be guessed from elsewhere goes on.
        salt = b"" if cache_salt is None else hashlib.blake2b(cache_salt.encode(), digest_size=16).digest()
        params = dataclasses.replace(params, structured_outputs=None)  # `grammar` says it
        adds = [m.Add(uuid.uuid4().hex, list(prompt), params, priority, salt, grammar) for prompt in prompts]
        return self._client.submit(adds)

    def _check_room(self, num_sequences: int) -> None:
        """More than a queue of `max_queue` would wait too long; one request of many sequences is let in when nothing else is there."""
        assert self._ready is not None
        limit = self._ready.max_num_seqs + self.config.max_queue
        num_unfinished = self._client.num_sequences
        if num_unfinished and num_unfinished + num_sequences > limit:
            wait = self.metrics.mean_request_seconds() * num_unfinished / self._ready.max_num_seqs
            raise ServerError(429, "too many requests are waiting", code="queue_full", retry_after=min(60, max(1, math.ceil(wait))))

    async def _unless_it_fails(self, task: Coroutine[Any, Any, None]) -> None:
        """Runs what must run as long as the server: where it ends with an error, the server does."""
        try:
            await task
        except CupolaError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001  a server that nobody looks after would seem to be one
            log.error("the server can't go on", exc_info=error)
            self.failure = EngineError(f"{type(error).__name__}: {error}")
        self.stopped.set()

    async def _watch_artifact(self) -> None:
        raise await self._artifact_watch.run()

    async def _keep_alive(self) -> None:
        """Starts the engine, and again if it dies; what keeps it from starting may pass, unless it was there from the beginning.

        Raises:
            CupolaError: why it can't be started.
        """
        num_failures = 0
        while True:
            try:
                self._ready = await self._start_engine()
            except EngineError as error:
                num_failures += 1
                if self._ready is None or num_failures == MAX_FAILED_STARTS:
                    raise
                log.warning("the engine can't be started; trying again", extra={"fields": {"error": str(error)}})
            else:
                num_failures = 0
                await self._client.died.wait()
                if self.draining:
                    return
                log.error("the engine's process ended; starting it again")
                self.metrics.count_engine_restart()
            await asyncio.sleep(min(MAX_PAUSE_SECONDS, 2.0**num_failures - 1))
            self._client = self._new_client()

    async def _start_engine(self) -> m.Ready:
        """Waits until the model is loaded. Raises ArtifactError or EngineError."""
        try:
            await self._client.start()
        except OSError as error:  # no descriptor, process or memory is left
            raise EngineError(f"the engine's process can't be started: {error}") from None
        if self._ready is None:  # the server's part is warm when the engine starts again
            await self._warm_up()
        ready = await self._client.ready()
        self._validator = Validator(self.artifact.manifest.model, ready.max_length, self._start.config.max_logprobs, self.tokenizer)
        log.info("ready", extra={"fields": {"model": self.config.served_model_name, "kv_blocks": ready.num_blocks}})
        return ready

    async def _warm_up(self) -> None:
        """Writes a chat, and reads a text, as requests do, while the engine loads: the first of each takes some hundredths of a second."""
        with contextlib.suppress(RequestError, EngineError):  # what is wrong is said to who asks for a chat
            text = "Hello"
            if self.chat_template is not None:
                text = await self.render([{"role": "user", "content": text}], add_generation_prompt=True)
            if self.tokenizer is not None:
                await asyncio.to_thread(self.tokenizer.encode, text)

    def _new_client(self) -> EngineClient:
        return EngineClient(self._start, self.metrics.observe_stats, self.config.stall_timeout)
