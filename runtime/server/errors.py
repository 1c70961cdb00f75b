"""Errors as OpenAI's clients know them: {"error": {"message", "type", "param", "code"}} and a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cupola.runtime.errors import ContextLengthError, EngineError, InputError, RequestError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    """The body of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer other than the one asked for."""

    error: ErrorDetail


# What every route may answer, for its description in /openapi.json.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is wrong, or too much.", "model": ErrorBody},
    "5XX": {"description": "The engine failed, is loading, or took too long.", "model": ErrorBody},
}


class ServerError(Exception):
    """An answer other than the one asked for.

    Args:
        status: the HTTP status.
        code: OpenAI's `code`, for programs.
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.field, self.retry_after = status, message, code, field, retry_after


def error_object(status: int, message: str, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": TYPES.get(status, "server_error"), "param": field, "code": code}}


def error_response(
    status: int, message: str, *, field: str | None = None, code: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as a response."""
    body = msgspec.json.encode(error_object(status, message, field, code))
    return Response(body, status, headers=dict(headers or {}), media_type="application/json")


def describe(error: Exception) -> tuple[int, str, str | None, str | None]:
    """Status, message, field and code of what a handler raised."""
    match error:
        case ServerError():
            return error.status, error.message, error.field, error.code
        case ContextLengthError():  # a sentence that clients look for
            return 400, f"{error.message} {error.fix}.", error.field, "context_length_exceeded"
        case InputError():
            return 400, str(error), error.field, None
        case EngineError():
            return 500, str(error), None, None
        case TimeoutError():
            return 504, "the request took longer than the server allows", None, "timeout"
        case _:
            return 500, "the server failed; its log says why", None, None


def on_error(_request: Request, error: Exception) -> Response:
    """The response to an error of ours."""
    status, message, field, code = describe(error)
    retry_after = error.retry_after if isinstance(error, ServerError) else None
    return error_response(status, message, field=field, code=code, headers={"Retry-After": str(retry_after)} if retry_after else None)


def on_http_exception(_request: Request, error: Exception) -> Response:
    """The response to Starlette's own: no such path, no such method."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), headers=error.headers)


def on_invalid_body(_request: Request, error: Exception) -> Response:
    """The response to a body that is no JSON, or not of the right types: its first fault.

    A value of several types has a fault for each: the one that was found deepest in it says most.
    """
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    fault = max([first, *(other for other in others if other["loc"][:2] == first["loc"][:2])], key=lambda fault: len(fault["loc"]))
    field = field_of([part for part in fault["loc"] if part != "body"])
    refused = fault.get("ctx", {}).get("error")
    if isinstance(refused, RequestError):
        where = ".".join(part for part in (field, refused.field) if part)
        return on_error(_request, RequestError(refused.message, field=where, fix=refused.fix))
    if fault["type"] == "json_invalid":
        return error_response(400, f"the body is not valid JSON: {fault['ctx']['error']}")
    where = field or "the body"
    return error_response(400, f"{where}: {fault['msg']}", field=field)


def field_of(location: Sequence[str | int]) -> str | None:
    """Pydantic's location as OpenAI writes it, such as messages[0].content; what names a type of a union is left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool", "list", "dict"):
            text += f".{part}" if text else part
    return text or None
