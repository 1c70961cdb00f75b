"""Whatever clients send, a record of the log is one line, and nothing in it speaks to a terminal."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from typing import Any

import pytest

from cupola.runtime.server.logs import JsonFormatter, OnceAWhile, TextFormatter

HOSTILE = (
    "/x\n2026-11-28T00:00:00.000+00:00 info    ready model=FORGED\n",
    "\r\x1b[2J\x1b]52;c;cm0=\x07",
    "\x9b2J\x85\x7f\x00\u2028\u2029\u202e",
    "a status=200",
    'a" status="200',
    'a\\" status=200 \\"',
    "\\",
    "",
    "\U000e0001",
)


def record_of(fields: dict[str, Any], error: Exception | None = None, message: str = "request") -> logging.LogRecord:
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    record = logging.LogRecord("cupola.server", logging.INFO, "file.py", 1, message, (), info)
    record.fields = fields
    return record


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_text_record_is_one_line_whose_fields_are_those_that_were_given(text: str):
    line = TextFormatter().format(record_of({"path": text, "status": 404, "seconds": 0.5}))
    assert line.isprintable()
    assert text in line or not text.isprintable() or '"' in text or "\\" in text
    _time, level, message, *pairs = shlex.split(line)
    assert (level, message) == ("info", "request")
    assert [pair.split("=", 1)[0] for pair in pairs] == ["path", "status", "seconds"]
    assert pairs[1:] == ["status=404", "seconds=0.5"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_json_record_is_one_line_that_says_the_same(text: str):
    line = JsonFormatter().format(record_of({"path": text}))
    assert line.isprintable()
    assert json.loads(line)["path"] == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_traceback_forges_no_line(text: str):
    first, *trace = TextFormatter().format(record_of({"path": "/"}, ValueError(text), message=text)).split("\n")
    assert first.isprintable()
    assert all(line.startswith("  ") and line.isprintable() for line in trace)
    assert json.loads(JsonFormatter().format(record_of({}, ValueError(text))))["traceback"].startswith("Traceback")


def test_plain_values_stay_plain():
    line = TextFormatter().format(record_of({"path": "/v1/models/é", "error": "RequestError: n: is 0", "none": None}))
    assert line.endswith('info    request path=/v1/models/é error="RequestError: n: is 0"')


def test_what_is_said_a_thousand_times_is_written_once_a_while():
    now = [100.0]
    once = OnceAWhile(10.0, lambda: now[0])
    written = []
    for number in range(2500):
        now[0] = 100.0 + number / 100
        record = record_of({}, OSError(24, "Too many open files"), message="socket.accept() out of system resource")
        if once.filter(record):
            written.append(record.fields.get("times_before"))
    assert written == [None, 999, 999]
    assert once.filter(record_of({}, OSError(28, "No space left on device")))
