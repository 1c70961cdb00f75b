"""A client of an OpenAI-compatible server: is it there, its model, the tokens of a text, and answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import httptools
import msgspec

from cupola.runtime.errors import EngineError, OptionError
from cupola.runtime.load_generator.answer import Answer, error_message
from cupola.runtime.load_generator.dataset import Prompt
from cupola.runtime.load_generator.http_client import Clock, HttpClient, Response
from cupola.runtime.load_generator.load_test import LoadTest
from cupola.runtime.load_generator.record import RequestRecord

POLL_S = 0.5
# How servers take a text to tokenize: vLLM and cupola, llama-server. Both answer {"tokens": […]}.
_TOKENIZE_FORMS: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("prompt", {"add_special_tokens": False}),
    ("content", {"add_special": False}),
)


class OpenAIClient:
    """Speaks to the server of a load test. `model` is known once `find_model` has run."""

    def __init__(self, test: LoadTest, clock: Clock = time.perf_counter) -> None:
        url = urlsplit(test.base_url)
        self._test, self._clock = test, clock
        self._root = url.path.rstrip("/").removesuffix("/v1")
        headers = {} if test.api_key is None else {"Authorization": f"Bearer {test.api_key}"}
        self._http = HttpClient(url, headers, test.request_timeout_sec, clock)
        self._tokenize_forms = _TOKENIZE_FORMS
        self.model = test.model or ""

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    async def wait_until_there(self) -> None:
        """Returns once the server answers and is not still loading. Raises EngineError when that takes too long."""
        deadline = self._clock() + self._test.ready_check_timeout_sec
        while True:
            problem = await self._problem()
            if problem is None:
                return
            if self._clock() >= deadline:
                waited = f"after {self._test.ready_check_timeout_sec:g} s: {problem}"
                raise EngineError(f"{self._test.base_url}: no server is ready {waited} (start one, or check --base-url, --host and --port)")
            await asyncio.sleep(POLL_S)

    async def find_model(self) -> None:
        """Takes the first model that the server lists, unless the test names one. Raises InputError."""
        if self._test.model is not None:
            return
        response = await self._call("GET", "/v1/models")
        models = _field(response, "data")
        first = models[0] if isinstance(models, list) and models else None
        if not isinstance(first, dict) or not isinstance(first.get("id"), str):
            raise OptionError("the server lists none", file=self._test.base_url, field="model", fix="name one with --model")
        self.model = first["id"]

    async def tokenize(self, text: str) -> list[int] | None:
        """The text's token ids, without special tokens that a prompt gets; None if the server can't say."""
        for form in self._tokenize_forms:
            name, others = form
            tokens = _field(await self._call("POST", "/tokenize", {"model": self.model, name: text, **others}), "tokens")
            if isinstance(tokens, list) and (tokens or not text) and all(isinstance(token, int) for token in tokens):
                self._tokenize_forms = (form,)
                return tokens
        if len(self._tokenize_forms) > 1:
            self._tokenize_forms = ()  # it has no such route; one that had answered before would only refuse this text
        return None

    async def generate(self, prompt: Prompt) -> RequestRecord:
        """One request and its answer; what goes wrong is said in the record."""
        start_s = self._clock()
        answer = Answer(start_s)
        body = msgspec.json.encode(self._body(prompt))
        try:
            response = await self._http.request("POST", self._root + self._test.endpoint, body, answer.feed)
        except TimeoutError:
            return RequestRecord(start_s, self._clock(), error=f"no end after {self._test.request_timeout_sec:g} s")
        except (OSError, httptools.HttpParserError) as error:
            return RequestRecord(start_s, self._clock(), error=_reason(error))
        if response.status != 200:
            reason = f"HTTP {response.status}: {error_message(response.body)}"
            return RequestRecord(start_s, self._clock(), error=reason, http_status=response.status)
        return answer.record(prompt.num_tokens)

    def _body(self, prompt: Prompt) -> dict[str, object]:
        test = self._test
        common = {"model": self.model, "temperature": test.temperature, "stream": True, "stream_options": {"include_usage": True}}
        if test.is_chat:
            asked = {"messages": [{"role": "user", "content": prompt.content}], "max_completion_tokens": prompt.output_len}
        else:
            asked = {"prompt": prompt.content, "max_tokens": prompt.output_len}
        return {**common, **asked, **({"ignore_eos": True} if test.ignores_eos else {}), **(test.extra_body or {})}

    async def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Response:
        """A request outside of the measurement. Raises EngineError for no answer, OptionError for a refused key."""
        data = b"" if body is None else msgspec.json.encode(body)
        try:
            response = await self._http.request(method, self._root + path, data)
        except (OSError, httptools.HttpParserError) as error:
            raise EngineError(f"{self._test.base_url}{path}: {_reason(error)}") from None
        if response.status in (401, 403):
            fix = "set OPENAI_API_KEY, or give --api-key"
            raise OptionError(f"is refused: {error_message(response.body)}", file=self._test.base_url, field="api-key", fix=fix)
        return response

    async def _problem(self) -> str | None:
        """Why the server is not ready; None if it is. Some list their models while they load them, others have no /health."""
        for path in ("/health", "/v1/models"):
            try:
                response = await self._call("GET", path)
            except EngineError as error:
                return str(error).rpartition(": ")[2]
            if response.status >= 500:
                return f"HTTP {response.status}: {error_message(response.body)}"
        return None


def _field(response: Response, name: str) -> object:
    """A field of a JSON response; None if there is none."""
    try:
        found = msgspec.json.decode(response.body) if response.status == 200 else None
    except msgspec.DecodeError:
        return None
    return found.get(name) if isinstance(found, dict) else None


def _reason(error: Exception) -> str:
    """An error without what differs from one request to the next."""
    if isinstance(error, httptools.HttpParserError):
        return f"what came is not HTTP: {error}"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "timed out"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
