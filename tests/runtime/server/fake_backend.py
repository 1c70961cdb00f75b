"""A server that speaks the API which the page uses, word by word as a script says, with figures that move."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from cupola.runtime.server.page_routes import router

KEY = "open sesame"


@dataclass
class Backend:
    """The server's answers, and the requests it saw. Tests set the first part, and read the second."""

    pieces: list[str] = field(default_factory=lambda: ["Hello", " there"])
    thoughts: list[str] = field(default_factory=list)  # reasoning before the pieces
    generation_config: dict | None = field(default_factory=dict)  # None: a server that has no /props
    pause: float = 0  # seconds before each of them
    num_waiting: int = 3
    held_from: int | None = None  # the thought or piece that waits until `go_on` is set
    refusal: Response | None = None
    wants_key: bool = False
    finish_reason: str = "stop"
    breaks_off: bool = False  # the stream ends without its end
    inner_error: str | None = None  # what the stream says went wrong, after its pieces
    url: str = ""

    requests: list[dict] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)
    went_away: threading.Event = field(default_factory=threading.Event)
    num_tokens: int = 0
    num_running: int = 0


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal in OpenAI's shape."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return JSONResponse(body, status, headers=headers)


def backend_app(backend: Backend) -> FastAPI:
    app = FastAPI()
    app.include_router(router)

    def is_locked(request: Request) -> bool:
        return backend.wants_key and request.headers.get("authorization") != f"Bearer {KEY}"

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if is_locked(request):
            return error(401, "Incorrect API key")
        return JSONResponse({"object": "list", "data": [{"id": "smollm2", "object": "model"}]})

    @app.get("/props")
    async def props() -> Response:
        if backend.generation_config is None:
            return error(404, "there is nothing here")
        return JSONResponse({"generation_config": backend.generation_config})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        if is_locked(request):
            return error(401, "Incorrect API key")
        lines = [
            "# HELP cupola:generation_tokens_total Generated tokens.",
            "# TYPE cupola:generation_tokens_total counter",
            f'cupola:generation_tokens_total{{model_name="smol lm2"}} {float(backend.num_tokens)}',
            f'cupola:num_requests_running{{model_name="smol lm2"}} {float(backend.num_running)}',
            f'cupola:num_requests_waiting{{model_name="smol lm2"}} {float(backend.num_waiting)}',
            f'cupola:kv_cache_usage_perc{{model_name="smol lm2"}} {0.25 * backend.num_running}',
        ]
        return Response("\n".join(lines) + "\n", media_type="text/plain")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        if is_locked(request):
            return error(401, "Incorrect API key")
        backend.requests.append(await request.json())
        if backend.refusal is not None:
            return backend.refusal
        return StreamingResponse(events(backend), media_type="text/event-stream")

    return app


async def events(backend: Backend) -> AsyncIterator[str]:
    """The answer as OpenAI streams it: a role, pieces of text, a reason, the usage, the end."""
    backend.num_running += 1
    is_complete = False
    try:
        yield chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        deltas = [*({"reasoning_content": thought} for thought in backend.thoughts), *({"content": piece} for piece in backend.pieces)]
        for i, delta in enumerate(deltas):
            while i == backend.held_from and not backend.go_on.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(backend.pause)
            yield chunk([{"index": 0, "delta": delta, "finish_reason": None}])
            backend.num_tokens += 1
        if backend.inner_error:
            yield f"data: {json.dumps({'error': {'message': backend.inner_error, 'code': 500}})}\n\n"
        elif not backend.breaks_off:
            yield chunk([{"index": 0, "delta": {}, "finish_reason": backend.finish_reason}])
            yield chunk([], {"prompt_tokens": 12, "completion_tokens": len(backend.pieces), "prompt_tokens_details": {"cached_tokens": 8}})
            yield "data: [DONE]\n\n"
        is_complete = True
    finally:
        backend.num_running -= 1
        if not is_complete:
            backend.went_away.set()


def chunk(choices: list[dict], usage: dict | None = None) -> str:
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'model': 'smollm2', 'choices': choices, 'usage': usage})}\n\n"


@contextmanager
def running_backend() -> Iterator[Backend]:
    """The server on a free port of this machine, in a thread."""
    backend = Backend()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server = uvicorn.Server(uvicorn.Config(backend_app(backend), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield backend
        finally:
            server.should_exit = True
            thread.join()
