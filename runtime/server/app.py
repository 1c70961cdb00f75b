"""The server's routes."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from cupola.runtime.errors import CupolaError, RequestError
from cupola.runtime.server.chat import apply_template, chat
from cupola.runtime.server.chat_plan import plan_prompt
from cupola.runtime.server.completions import complete
from cupola.runtime.server.content import Content
from cupola.runtime.server.engine_client import Health
from cupola.runtime.server.errors import ERROR_RESPONSES, ServerError, on_error, on_http_exception, on_invalid_body
from cupola.runtime.server.generation import json_response
from cupola.runtime.server.hosts import ANY, Hosts
from cupola.runtime.server.middleware import Guard, Observer, Prefix
from cupola.runtime.server.page_routes import router as page
from cupola.runtime.server.props import server_props
from cupola.runtime.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from cupola.runtime.server.service import ServerConfig, Service
from cupola.runtime.server.translations.anthropic import add_anthropic
from cupola.runtime.server.translations.anthropic_errors import AnthropicErrors
from cupola.runtime.server.translations.responses import add_responses

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}  # beside JSON
NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"description": "Requests are not answered now.", "content": {"application/json": {}}}}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class StrictRequest(Request):
    """A request whose JSON may not be nested without end, nor hold NaN, Infinity or half a character."""

    async def body(self) -> bytes:
        """The body's bytes. Raises HTTPException, of a status for the log, if the client goes away before they have come."""
        try:
            return await super().body()
        except ClientDisconnect:
            raise HTTPException(499, "the client has gone away") from None

    async def json(self) -> Any:
        """The body. Raises JSONDecodeError."""
        body = await self.body()
        try:
            found = from_json(body, allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None
        ignored = self.app.state.ignored_fields
        return {name: value for name, value in found.items() if name not in ignored} if ignored and isinstance(found, dict) else found


class StrictRoute(APIRoute):
    """A route whose requests are strict."""

    def get_route_handler(self) -> Handler:
        """The handler, given a `StrictRequest`."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def build_app(service: Service) -> FastAPI:
    """The application that serves `service`; its lifespan opens and closes it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.open()
        yield
        await service.close()

    app = FastAPI(
        title="cupola",
        version=importlib.metadata.version("cupola"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": service.config.root_path}] if service.config.root_path else None,
        responses=ERROR_RESPONSES,
    )
    app.state.ignored_fields = frozenset(service.config.ignored_fields)
    app.router.route_class = StrictRoute
    _add_middleware(app, service.config)
    for kind in (CupolaError, ServerError, TimeoutError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid_body)
    _add_generation(app, service)
    add_responses(app, service)
    add_anthropic(app, service)
    _add_tokens(app, service)
    _add_state(app, service)
    app.include_router(page)
    return app


def _add_middleware(app: FastAPI, config: ServerConfig) -> None:
    """Adds the middleware that each request passes, the last added first."""
    app.add_middleware(Content, max_bytes=config.max_body_bytes)
    app.add_middleware(Guard, api_keys=config.api_keys, max_body_bytes=config.max_body_bytes)
    if config.allowed_origins:  # before the key is asked for: browsers send none with their own questions, and pages read refusals too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("X-Request-Id", "Retry-After"),
            max_age=3600,
        )
    if config.allowed_hosts != (ANY,):
        app.add_middleware(Hosts, allowed=config.allowed_hosts)
    app.add_middleware(Observer)
    app.add_middleware(AnthropicErrors)
    if config.root_path:
        app.add_middleware(Prefix, root_path=config.root_path)


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", responses=STREAMED)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Goes on from a prompt, or from several."""
        return await complete(service, request, body)

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """The next message of a conversation."""
        return await chat(service, request, body)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> Response:
        """Refused: no artifact is an embedding model yet."""
        service.check_model(body.model)
        raise RequestError("generates text and has no embeddings", field="model", fix="use /v1/completions")


def _add_tokens(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """The token ids of a text, or of a chat."""
        service.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise RequestError("must be given, or messages, and not both", field="prompt", fix="give one of them")
        validator, tokenizer = service.validator, service.need_tokenizer("prompt")
        text, special = body.prompt or "", body.prompt is not None
        if body.messages is not None:
            text = await plan_prompt(service, body, body.messages).render(service, body)
        special = special if body.add_special_tokens is None else body.add_special_tokens
        ids = await asyncio.to_thread(tokenizer.encode, text, max_tokens=validator.max_length, add_special_tokens=special)
        strings = {"token_strs": [tokenizer.token(token_id) for token_id in ids]} if body.return_token_strs else {}
        return json_response({"count": len(ids), "max_model_len": validator.max_length, "tokens": ids, **strings})

    @app.post("/apply-template")
    async def apply(body: ChatRequest) -> Response:
        """The prompt that a chat's messages become, without an answer to it."""
        return json_response({"prompt": await apply_template(service, body)})

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        service.check_model(body.model)
        validator, tokenizer = service.validator, service.need_tokenizer("tokens")
        if len(body.tokens) > validator.max_length:
            problem = f"has {len(body.tokens)} tokens, more than a sequence may have, {validator.max_length}"
            raise RequestError(problem, field="tokens", fix="give fewer at once")
        for token_id in body.tokens:
            validator.token_id(token_id, "tokens")
        text = await asyncio.to_thread(tokenizer.decode, body.tokens, skip_special_tokens=body.skip_special_tokens)
        return json_response({"prompt": text})


def _add_state(app: FastAPI, service: Service) -> None:
    owners = {name: one for one in service.services for name in one.config.served_model_names}

    def card(name: str) -> dict[str, Any]:
        one = owners[name]
        ready, root = service.health is Health.READY and not service.draining, one.config.served_model_name
        length = one.max_length if ready else one.artifact.manifest.model.context_length
        return {"id": name, "object": "model", "created": one.created, "owned_by": "cupola", "root": root, "max_model_len": length}

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model that is served, under each of its names; of a cascade both."""
        return json_response({"object": "list", "data": [card(name) for name in owners]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        """A model by its name."""
        return json_response(card(model if model in owners else service.check_model(model)))

    @app.get("/health", responses=NOT_NOW)
    @app.get("/v1/health", responses=NOT_NOW)
    @app.get("/ping", responses=NOT_NOW)
    async def health() -> Response:
        """200 if requests are answered; 503 while the model is loading, or when the engine is dead, stalled, or shutting down."""
        state = "shutting_down" if service.draining else service.health.value
        response = json_response({"status": state})
        response.status_code = 200 if state == Health.READY.value else 503
        return response

    @app.get("/props")
    async def props() -> Response:
        """The context's size, the defaults and the chat template, for llama-server's clients."""
        return json_response(server_props(service))

    @app.get("/version")
    async def version() -> Response:
        """cupola's version."""
        return json_response({"version": app.version})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """The metrics in Prometheus's text format."""
        return Response(service.metrics.text(), media_type=METRICS_TYPE)
