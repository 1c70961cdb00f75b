"""Bodies that are no request: group 1 of the bad inputs."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from cupola.runtime.server.protocol import ChatRequest, CompletionRequest
from tests.runtime.server.harness import CHAT, COMPLETIONS, Server, error_of

DEEP = 100_000
HUGE = 2**63
LIMIT = 16 << 20  # bytes of a body
NOT_JSON = {
    "empty": b"",
    "a blank": b" ",
    "truncated": b'{"prompt": "Hi',
    "truncated at a key": b'{"prompt',
    "two objects": b'{"prompt": "a"} {"prompt": "b"}',
    "a trailing comma": b'{"prompt": "a",}',
    "single quotes": b"{'prompt': 'a'}",
    "deep lists": b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep lists, open": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "temperature": Infinity}',
    "-Infinity": b'{"prompt": "a", "temperature": -Infinity}',
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "surrogates in the wrong order": b'{"prompt": "\\udc00\\ud800"}',
    "a lone surrogate in a key": b'{"\\ud800": 1, "prompt": "a"}',
    "NUL unescaped": b'{"prompt": "a\x00b"}',
    "NUL before": b'\x00{"prompt": "a"}',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "overlong UTF-8": b'{"prompt": "\xc0\x80"}',
    "a surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "gzip's head": b"\x1f\x8b\x08\x00",
    "a number with leading zeros": b'{"prompt": "a", "n": 01}',
}
NOT_AN_OBJECT = (b"null", b"[]", b'"prompt"', b"1", b"1" * 4000, b"true")
WRONG_TYPES: dict[str, list[tuple[str, list[object]]]] = {  # field -> what the error's param is, and values
    "prompt": [
        ("prompt", [None, 1, True, {}, {"text": "a"}, 1.5]),
        ("prompt[0]", [[None], [1.5], [True], [{}], ["a", 1]]),
        ("prompt[1]", [[1, "a"], [1, True], [1, [1]]]),
        ("prompt[0][1]", [[[1, "a"]], [[1, True]]]),
    ],
    "n": [("n", [True, "1", 1.5, [], {}])],
    "max_tokens": [("max_tokens", [True, "1", 2.5, [1], {}])],
    "temperature": [("temperature", [True, "1", [1], {}])],
    "seed": [("seed", [False, "1", 0.5])],
    "stream": [("stream", [1, 0, "true", []])],
    "stop": [("stop", [1, True, {}]), ("stop[0]", [[1], [None], [["a"]]])],
    "logit_bias": [("logit_bias", [[1], "1", 1])],
    "logprobs": [("logprobs", [True, "1"])],
    "stop_token_ids": [("stop_token_ids", [1, "1"]), ("stop_token_ids[0]", [[True], ["1"]])],
    "stream_options": [("stream_options", [True, []])],
    "priority": [("priority", [True, "1"])],
    "cache_salt": [("cache_salt", [1, ["a"]])],
    "model": [("model", [1, ["a"]])],
}
INTEGERS = ("n", "max_tokens", "seed", "top_k", "min_tokens", "logprobs", "prompt_logprobs", "priority", "prompt", "stop_token_ids")
NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
TOO_LARGE = (HUGE, -HUGE - 1, 2**64, 10**30, -(10**30), 10**4000)


@pytest.mark.parametrize("name", NOT_JSON)
def test_no_json(server: Server, name: str):
    for path in (COMPLETIONS, CHAT, "/tokenize"):
        error = error_of(server.post(NOT_JSON[name], path))
        assert error["type"] == "invalid_request_error"
        assert "the body is not valid JSON" in error["message"] or (name == "empty" and "the body" in error["message"])
        assert error["param"] is None


def test_no_object(server: Server):
    for body in NOT_AN_OBJECT:
        assert "the body" in error_of(server.post(body))["message"]


def test_deep_values_in_fields_that_take_any(server: Server):
    deep = b"[" * 150 + b"]" * 150  # JSON's reader lets it pass: whatever comes after must bear it
    message = b'{"messages": [{"role": "user", "content": "a", "x": ' + deep + b"}]}"
    for path in (CHAT, "/tokenize"):
        assert server.post(message, path).status_code in (200, 400)
    for field in ("user", "audio", "response_format", "unknown", "functions", "structured_outputs", "guided_json"):
        assert server.post(b'{"prompt": "a", "max_tokens": 1, "' + field.encode() + b'": ' + deep + b"}").status_code in (200, 400)


@pytest.mark.parametrize("field", WRONG_TYPES)
def test_wrong_types(server: Server, field: str):
    for param, values in WRONG_TYPES[field]:
        for value in values:
            error = error_of(server.post({"prompt": "a", "max_tokens": 1, field: value}))
            assert (error["param"], error["message"].split(":")[0]) == (param, param), value


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}], ids=str)
def test_null_is_the_default_of_every_field(server: Server, body: dict[str, object]):
    path, model = (COMPLETIONS, CompletionRequest) if "prompt" in body else (CHAT, ChatRequest)
    nothing = {field.alias or name: None for name, field in model.model_fields.items() if not field.is_required()}
    given = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    assert server.post({**nothing, **body, **given}, path).json()["usage"]["completion_tokens"] == 4
    if path == COMPLETIONS:
        assert server.complete(**{**nothing, **body, "ignore_eos": True})["usage"]["completion_tokens"] == 16


def test_whole_numbers_may_be_written_as_floats(server: Server):
    body = {"prompt": "a", "n": 2.0, "max_tokens": 3.0, "top_k": 5.0, "seed": 1e3, "logprobs": 0.0, "ignore_eos": True, "priority": -1.0}
    assert server.complete(**body)["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("field", INTEGERS)
def test_integers_past_64_bits(server: Server, field: str):
    for value in TOO_LARGE:
        given = [value] if field in ("prompt", "stop_token_ids") else value
        assert error_of(server.post(_dump({"prompt": "a", "max_tokens": 1, field: given})))["param"].startswith(field)


@pytest.mark.parametrize("field", NUMBERS)
def test_integers_past_64_bits_for_numbers(server: Server, field: str):
    for value in TOO_LARGE:
        assert error_of(server.post(_dump({"prompt": "a", field: value})))["param"] == field
    assert error_of(server.post(b'{"prompt": "a", "' + field.encode() + b'": 1e999}'))["param"] == field


def test_a_nul_is_a_character(server: Server):
    answer = server.complete(prompt="a\0b", max_tokens=1, echo=True)
    assert answer["choices"][0]["text"].startswith("a\0b")
    assert answer["usage"]["prompt_tokens"] == 3


def test_a_field_that_comes_twice(server: Server):
    response = server.post(b'{"prompt": "a", "prompt": "bc", "max_tokens": 1}')
    assert response.status_code == 200
    assert response.json()["usage"]["prompt_tokens"] == 2


def test_wrong_content_type(server: Server):
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "image/png",
        "x",
        "",
        "/",
        "application/jsonx",
    ):
        response = server.http.post(COMPLETIONS, content=b'{"prompt": "a"}', headers={"Content-Type": kind})
        assert "Content-Type" in error_of(response, 415)["message"]
    assert "Content-Type" in error_of(server.http.post(COMPLETIONS, content=b'{"prompt": "a"}'), 415)["message"]


def test_right_content_type(server: Server):
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        response = server.http.post(COMPLETIONS, content=b'{"prompt": "a", "max_tokens": 1}', headers={"Content-Type": kind})
        assert response.status_code == 200, kind


# What goes over the wire ------------------------------------------------------------------------------------------------------------


def request(body: bytes, *headers: str) -> bytes:
    head = [f"POST {COMPLETIONS} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(head).encode() + body


GOOD = b'{"prompt": "a", "max_tokens": 1}'


def test_content_length_too_long(server: Server):
    """The client says that there is more, and ends."""
    with server.connect() as connection:
        connection.sendall(request(GOOD, f"Content-Length: {len(GOOD) + 1}"))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1 << 16) == b""


def test_content_length_too_short(server: Server):
    """Bytes left over are no request."""
    with server.connect() as connection:
        connection.sendall(request(GOOD, f"Content-Length: {len(GOOD) - 1}"))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as file:
            assert file.readline().split()[1] == b"400"


@pytest.mark.parametrize("length", ["x", "-1", "1, 2", "9" * 30, "", "0x10", "+5", "1.5", "١"])
def test_content_length_is_no_number(server: Server, length: str):
    status, _ = server.send_raw(request(GOOD, f"Content-Length: {length}"), end=True)
    assert status in (400, 413)


def test_two_content_lengths(server: Server):
    status, _ = server.send_raw(request(GOOD, f"Content-Length: {len(GOOD)}", "Content-Length: 5"), end=True)
    assert status == 400


def test_chunked(server: Server):
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    assert server.send_raw(request(chunks, "Transfer-Encoding: chunked"))[0] == 200
    for bad in (b"xyz\r\n", b"-1\r\n", b"f" * 20 + b"\r\n"):
        assert server.send_raw(request(bad, "Transfer-Encoding: chunked"), end=True)[0] == 400


def test_a_body_larger_than_the_limit_is_refused_before_it_is_read(server: Server):
    status, body = server.send_raw(request(b"", f"Content-Length: {LIMIT + 1}"))
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_a_chunked_body_larger_than_the_limit(server: Server):
    """Nobody says how long it will be, so it is read up to the limit."""
    chunk = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(request(b"", "Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):  # the answer may come, and the connection end, before all is sent
            for _ in range(LIMIT // 2**20 + 1):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
        with connection.makefile("rb") as file:
            assert file.readline().split()[1] == b"413"


def test_a_body_as_large_as_the_limit(server: Server):
    body = GOOD + b" " * (LIMIT - len(GOOD))
    assert server.post(body).status_code == 200


def test_what_is_no_http(server: Server):
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"\0" * 1000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        assert server.send_raw(raw, end=True)[0] == 400


def test_huge_headers(server: Server):
    for head in ("X: " + "a" * 2**20, "\r\n".join(f"X-{i}: {i}" for i in range(50_000))):
        with server.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(request(GOOD, f"Content-Length: {len(GOOD)}", head))
            assert connection.recv(12).split()[1] in (b"200", b"400", b"431")


def _dump(body: dict[str, object]) -> bytes:
    return json.dumps(body).encode()
