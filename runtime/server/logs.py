"""The server's log: a line a request, as text or JSON, on standard error."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

LogFormat = Literal["text", "json"]
log = logging.getLogger("cupola.server")


class JsonFormatter(logging.Formatter):
    """An object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, message and fields."""
        line = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """Time, level, message, and key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, message and fields, on one line unless there is a traceback."""
        pairs = " ".join(f"{name}={value}" for name, value in _fields(record).items() if value is not None)
        line = f"{_time(record)} {record.levelname.lower():7s} {record.getMessage()} {pairs}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up_logs(log_format: LogFormat) -> None:
    """Sends what the server and uvicorn say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    # What else uvicorn says, the server says itself; asyncio warns of every client that went away while it was written to.
    for name, level in ((log.name, logging.INFO), ("uvicorn.error", logging.WARNING), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
