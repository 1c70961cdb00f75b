"""A server with OpenAI's API that says what a test tells it to, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """How one request is answered: with an error's status; or in chunks, of which `breaks_after` may be the last."""

    status: int = 200
    message: str = "no"
    breaks_after: int | None = None
    error_after: int | None = None
    closes: bool = False
    never_ends: bool = False


@dataclass
class FakeServer:
    """The server's settings, and the requests it saw. A text has a token for each word, and one more for each letter z."""

    plan: Callable[[int], Plan] = lambda number: Plan()
    model: str = "org/fake"
    key: str | None = None
    polls_before_ready: int = 0
    loading_path: str = "/health"  # which says so
    tokenizes: str | None = "vllm"  # or "llama"
    takes_ids: bool = True
    has_usage: bool = True
    num_cached: int = 2
    newline: str = "\n"
    piece_bytes: int = 1 << 20
    bodies: list[dict] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    num_connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tokens(self, text: str) -> list[int]:
        return [100 + sum(map(ord, word)) for word in text.split() for _ in range(1 + word.count("z"))]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                lines = head.split("\r\n")
                _, path, _ = lines[0].split(" ")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self.answer(path, headers, json.loads(body) if body else {}, writer)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def answer(self, path: str, headers: dict[str, str], body: dict, writer: asyncio.StreamWriter) -> None:
        self.paths.append(path)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return self.reply(writer, 401, {"error": {"message": "wrong key"}})
        if self.polls_before_ready > 0:
            self.polls_before_ready -= path == self.loading_path
            if path in (self.loading_path, "/tokenize"):
                return self.reply(writer, 503, {"error": {"message": "loading"}})
        if path == "/v1/models":
            return self.reply(writer, 200, {"object": "list", "data": [{"id": self.model}]})
        if path == "/tokenize" and self.tokenizes == "vllm":
            assert body["add_special_tokens"] is False and body["model"]
            if len(self.tokens(body["prompt"])) > 2000:
                return self.reply(writer, 400, {"error": {"message": "too long"}})
            return self.reply(writer, 200, {"count": 0, "tokens": self.tokens(body["prompt"]), "max_model_len": 99})
        if path == "/tokenize" and self.tokenizes == "llama":
            return self.reply(writer, 200, {"tokens": self.tokens(body.get("content", ""))})
        if path in ("/v1/completions", "/v1/chat/completions"):
            return await self.complete(path, body, writer)
        return self.reply(writer, 404, {"detail": "Not Found"})

    async def complete(self, path: str, body: dict, writer: asyncio.StreamWriter) -> None:
        number = len(self.bodies)
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            plan = self.plan(number)
            if body["model"] != self.model:
                plan = Plan(404, f"The model `{body['model']}` does not exist.")
            if isinstance(body.get("prompt"), list) and not self.takes_ids:
                plan = Plan(422, "prompt must be a text")
            if plan.status != 200:
                return self.reply(writer, plan.status, {"error": {"message": plan.message}})
            await self.stream(path.endswith("/chat/completions"), body, plan, writer)
        finally:
            self.in_flight -= 1

    async def stream(self, is_chat: bool, body: dict, plan: Plan, writer: asyncio.StreamWriter) -> None:
        framing = "Connection: close" if plan.closes else "Transfer-Encoding: chunked"
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n".encode())
        for sent, event in enumerate(self.events(is_chat, body)):
            if sent == plan.breaks_after:
                return writer.close()
            data = event if sent != plan.error_after else json.dumps({"error": {"message": "out of blocks", "code": 500}})
            self.write(writer, f"data: {data}{self.newline * 2}".encode(), plan)
            await asyncio.sleep(0.001)
            while plan.never_ends and sent == 1:
                await asyncio.sleep(0.01)
        if plan.closes:
            writer.close()
        else:
            writer.write(b"0\r\n\r\n")

    def write(self, writer: asyncio.StreamWriter, data: bytes, plan: Plan) -> None:
        for start in range(0, len(data), self.piece_bytes):
            piece = data[start : start + self.piece_bytes]
            writer.write(piece if plan.closes else b"%x\r\n%s\r\n" % (len(piece), piece))

    def events(self, is_chat: bool, body: dict) -> Iterator[str]:
        """The chunks of an answer "0 1 2 …": for a chat, its role first; then, if wanted, usage."""
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        num_prompt = len(prompt) if isinstance(prompt, list) else len(self.tokens(prompt))
        num_new = body["max_completion_tokens"] if is_chat else body["max_tokens"]
        chunks: list[dict] = [{"text": f"{n} ", "finish_reason": "length" if n == num_new - 1 else None} for n in range(num_new)]
        if is_chat:
            chunks = [{"delta": {"content": c["text"]}, "finish_reason": c["finish_reason"]} for c in chunks]
            chunks = [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}, *chunks]
        yield from (json.dumps({"id": "x", "choices": [{"index": 0, **chunk}], "usage": None}) for chunk in chunks)
        if self.has_usage and body["stream_options"]["include_usage"]:
            usage = {"prompt_tokens": num_prompt, "completion_tokens": num_new, "prompt_tokens_details": {"cached_tokens": self.num_cached}}
            yield json.dumps({"id": "x", "choices": [], "usage": usage})
        yield "[DONE]"

    def reply(self, writer: asyncio.StreamWriter, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(data), data))

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def main() -> None:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await stop.wait()
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0)

        thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
        thread.start()
        started.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


def every(number: int, plan: Plan, first: int = 2) -> Callable[[int], Plan]:
    """A plan for each `number`th request from `first` on; the first two try the server out and warm it up."""
    return lambda request: plan if request >= first and (request - first) % number == 0 else Plan()


def texts(bodies: Sequence[dict]) -> list[str]:
    return [body["messages"][0]["content"] for body in bodies]
