"""From a foreign request to a chat request: which fields pass as they are, and how errors name the fields that the client gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from fastapi.exceptions import RequestValidationError
from pydantic import ConfigDict, ValidationError

from cupola.runtime.errors import RequestError
from cupola.runtime.server.protocol import Body, ChatRequest, Object, Sampling

# Fields of a chat request that have other names in foreign requests, or would change what only a chat's answer holds.
TRANSLATED = frozenset(
    {
        "best_of", "logprob_token_ids", "logprobs", "max_tokens", "model", "n", "prompt_logprobs", "response_format", "return_token_ids",
        "return_tokens_as_token_ids", "stream", "stream_options",
    }
)  # fmt: skip
# Of what only chats have, the fields that change the prompt or the thinking alone.
ALSO_PASSED = ("chat_template", "chat_template_kwargs", "documents", "enable_thinking", "reasoning_effort", "thinking_token_budget")
PASSED = frozenset(Sampling.model_fields) - TRANSLATED | frozenset(ALSO_PASSED) & frozenset(ChatRequest.model_fields)


class Translated(Body):
    """A body that may also have the fields of `PASSED`, unchecked until the chat request is made of them."""

    model_config = ConfigDict(strict=True, extra="allow")

    also_known: ClassVar[frozenset[str]] = PASSED

    @property
    def passed(self) -> Object:
        """The fields that a chat request takes as they are."""
        return {name: value for name, value in self if name in PASSED and name in self.model_fields_set}


def make_chat_request(fields: Mapping[str, Any]) -> ChatRequest:
    """The chat request of these fields; None is left out. Raises RequestError, RequestValidationError."""
    try:
        return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        faults = error.errors()
        refused = faults[0].get("ctx", {}).get("error")
        if isinstance(refused, RequestError):
            raise refused from None
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


@contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Lets a RequestError name fields as the client did: `names` says how what a chat request calls `messages[0]` was called."""
    try:
        yield
    except RequestError as error:
        field = error.field or ""
        known = next((name for name in sorted(names, key=len, reverse=True) if _begins(field, name)), None)
        if known is None:
            raise
        error.field = names[known] + field[len(known) :]
        if type(error) is not RequestError:  # whose sentence says all
            raise
        raise RequestError(error.message, field=error.field, fix=error.fix) from None


def _begins(field: str, name: str) -> bool:
    return field == name or (field.startswith(name) and field[len(name)] in ".[")
