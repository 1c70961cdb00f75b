"""The record of one HTTP request, for its line in the log."""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.requests import Request

from cupola.runtime.server.logs import log

MAX_ID_CHARACTERS = 128


@dataclass
class RequestRecord:
    """One request; times are those of `time.monotonic()`."""

    request_id: str
    method: str
    path: str
    arrival: float = field(default_factory=time.monotonic)
    status: int = 0
    error: str | None = None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_output_tokens: int | None = None
    num_schema_errors: int = 0
    answered_by: str | None = None  # of a cascade's models
    first_token: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    resources: ExitStack = field(default_factory=ExitStack)  # what the request holds: released at its end, whatever happened on the way

    def fail(self, status: int, error: Exception) -> None:
        """Notes what went wrong; a fault of ours with its traceback."""
        self.status, self.error = status, f"{type(error).__name__}: {error}"[:300]
        if status == 500:
            log.error("request failed", extra={"fields": {"request_id": self.request_id}}, exc_info=error)

    def write(self) -> None:
        """The line in the log."""
        now = time.monotonic()
        fields = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "seconds": round(now - self.arrival, 4),
            "first_token_seconds": None if self.first_token is None else round(self.first_token - self.arrival, 4),
            "prompt_tokens": self.num_prompt_tokens,
            "cached_tokens": self.num_cached_tokens,
            "output_tokens": self.num_output_tokens,
            "finish_reasons": ",".join(sorted(set(self.finish_reasons))) or None,
            "schema_errors": self.num_schema_errors or None,
            "answered_by": self.answered_by,
            "error": self.error,
        }
        log.info("request", extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def choose_id(wanted: str | None) -> str:
    """The client's own X-Request-Id if it can stand in a log and a header, else a new one."""
    if wanted and len(wanted) <= MAX_ID_CHARACTERS and wanted.isascii() and wanted.isprintable():
        return wanted
    return uuid.uuid4().hex


def record_of(request: Request) -> RequestRecord:
    """The record that the middleware made of a request."""
    record: RequestRecord = request.scope["cupola.record"]
    return record
