"""`/v1/messages`, Anthropic's API: its messages, its events, its errors, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from cupola.runtime.errors import RequestError
from cupola.runtime.server.translations.anthropic_blocks import chat_messages
from cupola.runtime.server.translations.anthropic_output import ContentWriter, read_arguments
from cupola.runtime.server.translations.pieces import Piece
from tests.runtime.server.harness import CHAT, Server, run_server, unharmed

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
USER = {"role": "user", "content": "hi"}
HELLO = {"messages": [USER], "max_tokens": 8}
USE = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {
    "name": "weather",
    "description": "the weather",
    "strict": True,
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "text": ([USER], [USER]),
    "blocks": (
        [{"role": "user", "content": [text("a", cache_control={"type": "ephemeral"}), text("b")]}],
        [{"role": "user", "content": "a\nb"}]),
    "turns of one role are one": (
        [USER, USER, {"role": "assistant", "content": "so"}],
        [{"role": "user", "content": "hi\nhi"}, {"role": "assistant", "content": "so"}]),
    "a thought, words and a call": (
        [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, text("so"), USE]},
         {"role": "user", "content": [RESULT, text("and now?")]}],
        [USER, {"role": "assistant", "content": "so", "reasoning_content": "hm", "tool_calls": [CALL]},
         {"role": "tool", "tool_call_id": "c1", "content": "rain"}, {"role": "user", "content": "and now?"}]),
    "calls at once": (
        [USER, {"role": "assistant", "content": [USE, {**USE, "id": "c2"}]},
         {"role": "user", "content": [RESULT, {"type": "tool_result", "tool_use_id": "c2", "is_error": True, "content": "no"}]}],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
         {"role": "tool", "tool_call_id": "c1", "content": "rain"}, {"role": "tool", "tool_call_id": "c2", "content": "Error: no"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_blocks_are_a_chat(name: str):
    messages, expected = CONVERSATIONS[name]
    assert chat_messages(messages, None)[0] == expected
    assert chat_messages(messages, [text("a"), text("b")])[0] == [{"role": "system", "content": "a\nb"}, *expected]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "tool", "content": "a"}, "messages[0].role"),
        ({"role": "user", "content": [{"type": "image", "source": {}}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "document"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "assistant", "content": [{"type": "redacted_thinking", "data": "a"}]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": [{"type": "server_tool_use"}]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": [{**USE, "input": "a"}]}, "messages[0].content[0].input"),
        ({"role": "user", "content": [{**RESULT, "content": [{"type": "image"}]}]}, "messages[0].content[0].content[0]"),
    ],
)
def test_other_blocks_are_refused_by_name(message: dict[str, Any], field: str):
    with pytest.raises(RequestError) as error:
        chat_messages([message], None)
    assert error.value.field == field


def test_events_are_those_of_the_reference():
    pieces = [
        Piece("reasoning", "h"), Piece("reasoning", "m"), Piece("text", "so"),
        Piece("call", "", 0, "c1", "weather"), Piece("call", '{"city":', 0), Piece("call", '"Oslo"}', 0),
        Piece("call", "{", 1, "c2", "now"),
    ]  # fmt: skip
    writer = ContentWriter()
    events = [event for piece in pieces for event in writer.push(piece)] + writer.close()
    start, delta, stop = "content_block_start", "content_block_delta", "content_block_stop"
    assert [(event["type"].removeprefix("content_block_"), event["index"], event.get("delta", {}).get("type")) for event in events] == [
        ("start", 0, None), ("delta", 0, "thinking_delta"), ("delta", 0, "thinking_delta"), ("delta", 0, "signature_delta"),
        ("stop", 0, None),
        ("start", 1, None), ("delta", 1, "text_delta"), ("stop", 1, None),
        ("start", 2, None), ("delta", 2, "input_json_delta"), ("delta", 2, "input_json_delta"), ("stop", 2, None),
        ("start", 3, None), ("delta", 3, "input_json_delta"), ("stop", 3, None),
    ]  # fmt: skip
    assert {event["type"] for event in events} == {start, delta, stop}
    assert [event["content_block"] for event in events if event["type"] == start] == [
        {"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": ""},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {}}, {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
    ]  # fmt: skip
    thought, said, call, _ = writer.blocks
    assert thought["thinking"] == "hm" and thought["signature"] and said["text"] == "so" and call["input"] == {"city": "Oslo"}


@pytest.mark.parametrize(
    ("arguments", "found"), [('{"a": "b', {"a": "b"}), ("", {}), ("[1]", {}), ("nonsense", {}), ('{"a": 1}', {"a": 1})]
)
def test_a_call_that_broke_off_has_an_object(arguments: str, found: dict[str, Any]):
    assert read_arguments(arguments) == found


def events_of(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed message; each is named as its type, which clients go by."""
    response = server.http.post(MESSAGES, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    events = []
    for event in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_whole_and_streamed(server: Server):
    body = {**HELLO, "system": [text("be kind", cache_control={"type": "ephemeral"})], "temperature": 0, "metadata": {"user_id": "a"}}
    with unharmed(server):
        whole = server.post(body, MESSAGES).json()
        events = events_of(server, body)
    assert [event["type"] for event in events[:3]] == ["message_start", "ping", "content_block_start"]
    assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert whole["stop_reason"] == "max_tokens" and whole["role"] == "assistant" and whole["type"] == "message"
    said = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert [{"type": "text", "text": said}] == whole["content"]
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    messages = [{"role": "system", "content": "be kind"}, USER]
    chat = server.post({"messages": messages, "temperature": 0, "max_tokens": 8}, CHAT).json()
    assert chat["choices"][0]["message"]["content"] == said
    for usage in (whole["usage"], events[-2]["usage"], events[0]["message"]["usage"]):
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]
    assert whole["usage"]["output_tokens"] == events[-2]["usage"]["output_tokens"] == 8
    assert server.post({name: body[name] for name in ("messages", "system")}, COUNT).json() == {
        "input_tokens": chat["usage"]["prompt_tokens"]
    }


def test_stop_sequences_and_continuing(server: Server):
    greedy = {**HELLO, "temperature": 0, "max_tokens": 30}
    said = server.post(greedy, MESSAGES).json()["content"][0]["text"]
    stop = next(character for character in said[4:] if character.isascii() and character.isprintable() and character not in said[:4])
    cut = server.post({**greedy, "stop_sequences": [stop]}, MESSAGES).json()
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", stop) and cut["content"][0]["text"] == said.partition(stop)[0]
    begun = {"messages": [USER, {"role": "assistant", "content": "So it"}]}
    told = {"messages": begun["messages"], "continue_final_message": True, "add_generation_prompt": False, "max_tokens": 1}
    assert server.post(begun, COUNT).json()["input_tokens"] == server.post(told, CHAT).json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call(server: Server, stream: bool):
    body = {"messages": [USER], "max_tokens": 200, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
    with unharmed(server):
        if stream:
            events = events_of(server, body)
            [start] = [event["content_block"] for event in events if event["type"] == "content_block_start"]
            arguments = "".join(event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta")
            block, reason = {**start, "input": json.loads(arguments)}, events[-2]["delta"]["stop_reason"]
        else:
            answer = server.post(body, MESSAGES).json()
            [block], reason = answer["content"], answer["stop_reason"]
    assert reason == "tool_use"
    assert {**block, "id": ""} == {"type": "tool_use", "id": "", "name": "weather", "input": {"city": "Oslo"}}


def test_structured_output(server: Server):
    schema = {"type": "object", "properties": {"name": {"type": "boolean"}}, "required": ["name"], "additionalProperties": False}
    for field in (
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"output_format": {"type": "json_schema", "schema": schema}},
    ):
        answer = server.post({"messages": [USER], "max_tokens": 100, **field}, MESSAGES).json()
        assert isinstance(json.loads(answer["content"][0]["text"])["name"], bool)


def error_of(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error" and set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == kind and body["request_id"] == response.headers["x-request-id"]
    message: str = body["error"]["message"]
    return message


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no limit": ({"max_tokens": None}, "max_tokens:"),
    "hosted tool": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type:"),
    "no schema": ({"tools": [{"name": "a"}]}, "tools[0].input_schema:"),
    "bad schema": ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema:"),
    "no such tool": ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "nobody"}}, "tool_choice"),
    "servers": ({"mcp_servers": [{"type": "url"}]}, "mcp_servers:"),
    "container": ({"container": "a"}, "container:"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]:"),
    "no call": ({"messages": [USER, {"role": "user", "content": [RESULT]}]}, "messages[1].tool_call_id:"),
    "nothing": ({"messages": []}, "messages:"),
    "unknown": ({"max_completion_tokens": 5}, "max_completion_tokens:"),
    "top_k": ({"top_k": -5}, "top_k:"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_name(server: Server, name: str):
    body, beginning = REFUSED[name]
    assert error_of(server.post({**HELLO, **body}, MESSAGES), 400, "invalid_request_error").startswith(beginning)


def test_errors_of_every_origin_are_anthropics(server: Server):
    error_of(server.post(b"{", MESSAGES), 400, "invalid_request_error")
    error_of(server.post({**HELLO, "model": "claude"}, MESSAGES), 404, "not_found_error")
    error_of(server.http.get(MESSAGES), 405, "invalid_request_error")
    error_of(server.http.get(f"{MESSAGES}/batches"), 404, "not_found_error")
    error_of(server.http.post(MESSAGES, content=b"a", headers={"Content-Type": "text/plain"}), 415, "invalid_request_error")
    assert set(server.post(b"{", CHAT).json()) == {"error"}


def test_the_key_as_anthropics_clients_send_it(tiny: Path, tmp_path: Path):
    with run_server(tiny, tmp_path, api_key="secret") as server:
        with httpx.Client(base_url=server.base_url, trust_env=False) as stranger:
            assert stranger.post(MESSAGES, json=HELLO, headers={"x-api-key": "secret"}).status_code == 200
            error_of(stranger.post(MESSAGES, json=HELLO, headers={"x-api-key": "wrong"}), 401, "authentication_error")
            error_of(stranger.post(MESSAGES, json=HELLO), 401, "authentication_error")
