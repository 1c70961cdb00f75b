"""The server's log: a line a request, as text or JSON, on standard error."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from cupola.runtime.errors import one_line

LogFormat = Literal["text", "json"]
log = logging.getLogger("cupola.server")
QUIET_SECONDS, MAX_PLACES = 10.0, 1024
PLAIN = re.compile(r'[^\s"=\\]+')


class JsonFormatter(logging.Formatter):
    """An object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, message and fields."""
        line = {"time": _time(record), "level": record.levelname.lower(), "message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = msgspec.json.encode(line).decode()
        return text if text.isprintable() else "".join(map(_escape, text))  # a terminal obeys DEL and C1 too


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else json.dumps(character)[1:-1]


class TextFormatter(logging.Formatter):
    """Time, level, message, and key=value. Whatever clients send, a record is one line, but for the indented ones of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, message and fields, on one line unless there is a traceback."""
        pairs = " ".join(f"{name}={_quote(str(value))}" for name, value in _fields(record).items() if value is not None)
        line = f"{_time(record)} {record.levelname.lower():7s} {one_line(record.getMessage())} {pairs}".rstrip()
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n".join((line, *(f"  {one_line(part)}" for part in trace)))


def _quote(value: str) -> str:
    """A value as it is, or in quotes if it could be taken for something else."""
    if PLAIN.fullmatch(value) and value.isprintable():
        return value
    return '"' + one_line(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'


class OnceAWhile(logging.Filter):
    """Lets a message through once in `seconds`, with how often it was held back since. What fails may fail a thousand times a second."""

    def __init__(self, seconds: float = QUIET_SECONDS, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds, self._now = seconds, now
        self._last: dict[tuple[str, int], float] = {}  # by the place in the code that says it
        self._held_back: Counter[tuple[str, int]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the record is to be written."""
        place, now = (record.pathname, record.lineno) if record.exc_info is None else (str(record.exc_info[1]), 0), self._now()
        if now - self._last.get(place, -math.inf) < self._seconds:
            self._held_back[place] += 1
            return False
        if len(self._last) >= MAX_PLACES:
            self._last.clear()
        self._last[place] = now
        if times := self._held_back.pop(place, 0):
            record.fields = {**_fields(record), "times_before": times}
        return True


def set_up_logs(log_format: LogFormat) -> None:
    """Sends what the server and uvicorn say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    # What else uvicorn says, the server says itself; asyncio warns of every client that went away while it was written to.
    levels = {"cupola": logging.WARNING, log.name: logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.ERROR}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
        logger.filters = [] if logger is log else [OnceAWhile()]


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
