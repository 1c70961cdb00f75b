"""`/v1/responses` as OpenAI's own client uses it: its types, its events, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from cupola.runtime.errors import RequestError
from cupola.runtime.server.errors import ServerError
from cupola.runtime.server.translations.pieces import Piece
from cupola.runtime.server.translations.responses_items import conversation_of
from cupola.runtime.server.translations.responses_output import OutputWriter
from cupola.runtime.server.translations.responses_store import ResponseStore
from tests.runtime.server.harness import CHAT, Server, error_of, unharmed

RESPONSES = "/v1/responses"
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}}
TOOL: Any = {"type": "function", "strict": True, **WEATHER}
FORCED: Any = {"type": "function", "name": "weather"}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as found:
        yield found


def messages_of(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return conversation_of(None, [(item, f"input[{i}]") for i, item in enumerate(items)]).messages


USER = {"role": "user", "content": "hi"}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
SAID = {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "so", "annotations": []}]}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "text": ([USER], [USER]),
    "parts": ([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
              [{"role": "user", "content": "a\nb"}]),
    "thought, words and a call are one turn": (
        [USER, REASONING, SAID, CALL, OUTPUT],
        [USER, {"role": "assistant", "content": "so", "reasoning_content": "hm", "tool_calls": [CHAT_CALL]},
         {"role": "tool", "tool_call_id": "c1", "content": "rain"}]),
    "two calls at once": (
        [USER, CALL, {**CALL, "call_id": "c2"}, OUTPUT, {**OUTPUT, "call_id": "c2"}],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]},
         {"role": "tool", "tool_call_id": "c1", "content": "rain"}, {"role": "tool", "tool_call_id": "c2", "content": "rain"}]),
    "two answers": ([SAID, SAID], [{"role": "assistant", "content": "so"}, {"role": "assistant", "content": "so"}]),
    "a thought that broke off": ([REASONING, USER], [{"role": "assistant", "content": "", "reasoning_content": "hm"}, USER]),
    "a thought after an answer": (
        [SAID, REASONING, SAID],
        [{"role": "assistant", "content": "so"}, {"role": "assistant", "content": "so", "reasoning_content": "hm"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_items_are_a_chat(name: str):
    items, messages = CONVERSATIONS[name]
    assert messages_of(*items) == messages


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"type": "web_search_call"}, "input[0]"),
        ({"role": "tool", "content": "a"}, "input[0].role"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}, "input[0].content[0]"),
        ({"type": "function_call_output", "call_id": "a", "output": 5}, "input[0].output"),
        ({"type": "reasoning", "summary": [], "encrypted_content": "abc"}, "input[0].encrypted_content"),
    ],
)
def test_other_items_are_refused_by_name(item: dict[str, Any], field: str):
    with pytest.raises(RequestError) as error:
        messages_of(item)
    assert error.value.field == field


def test_events_are_those_of_the_reference():
    pieces = [
        Piece("reasoning", "h"), Piece("reasoning", "m"), Piece("text", "so"), Piece("text", " it"),
        Piece("call", "", 0, "c1", "weather"), Piece("call", '{"city"', 0), Piece("call", ':"Oslo"}', 0),
        Piece("call", "{}", 1, "c2", "now"),
    ]  # fmt: skip
    writer = OutputWriter()
    events = [event for piece in pieces for event in writer.push(piece)] + writer.finish("completed")
    for i, event in enumerate(events):
        TypeAdapter(ResponseStreamEvent).validate_python({**event, "sequence_number": i})
    added, part, done = "response.output_item.added", "response.content_part.", "response.output_item.done"
    text, thought, call = "response.output_text.", "response.reasoning_text.", "response.function_call_arguments."
    assert [event["type"] for event in events] == [
        added, part + "added", thought + "delta", thought + "delta", thought + "done", part + "done", done,
        added, part + "added", text + "delta", text + "delta", text + "done", part + "done", done,
        added, call + "delta", call + "delta", call + "done", done,
        added, call + "delta", call + "done", done,
    ]  # fmt: skip
    assert [event["output_index"] for event in events] == [0] * 7 + [1] * 7 + [2] * 5 + [3] * 4
    assert [event["item"] for event in events if event["type"] == done] == writer.items
    assert [item["type"] for item in writer.items] == ["reasoning", "message", "function_call", "function_call"]
    assert writer.items[2]["arguments"] == '{"city":"Oslo"}' and writer.items[2]["call_id"] == "c1"
    assert writer.items[1]["content"][0]["text"] == "so it"


def test_an_answer_without_a_word_has_an_empty_message():
    writer = OutputWriter()
    assert [event["type"] for event in writer.finish("completed")][0] == "response.output_item.added"
    assert writer.items[0]["content"][0]["text"] == "" and writer.items[0]["status"] == "completed"


def stored(i: int, text: str = "") -> dict[str, Any]:
    return {"id": f"resp_{i}", "output": [{"id": f"msg_{i}", "text": text}]}


def test_the_store_has_a_bound():
    store = ResponseStore(max_responses=3, max_bytes=1000)
    for i in range(3):
        store.add(stored(i), (), ())
    store.get("resp_0")
    store.add(stored(3), (), ())
    with pytest.raises(ServerError):
        store.get("resp_1")  # what was used longest ago
    assert store.item("msg_0", "input[0]")["id"] == "msg_0"
    store.add(stored(4, "x" * 700), (), ())
    assert store.get("resp_4") and len(store._responses) < 4
    store.add(stored(5, "x" * 2000), (), ())
    with pytest.raises(ServerError):
        store.get("resp_5")
    for response_id in list(store._responses):
        store.remove(response_id)
    assert store._num_bytes == 0 and not store._items


def test_whole_and_streamed(server: Server, client: openai.OpenAI):
    asked: Any = {
        "model": "tiny", "input": "hello", "instructions": "be kind", "temperature": 0, "max_output_tokens": 12,
        "metadata": {"a": "b"}, "include": ["message.output_text.logprobs"], "top_logprobs": 2,
    }  # fmt: skip
    asked["model"] = client.models.list().data[0].id
    with unharmed(server):
        whole = client.responses.create(**asked)
        events = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        TypeAdapter(ResponseStreamEvent).validate_python(event.model_dump())
    last: Any = events[-1]
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"
    assert whole.output_text and whole.output_text == last.response.output_text
    assert whole.output_text == "".join(event.delta for event in events if event.type == "response.output_text.delta")
    content: Any = whole.output[0]
    assert len(content.content[0].logprobs) == 12 and len(content.content[0].logprobs[0].top_logprobs) == 2
    assert whole.usage and whole.usage.output_tokens == 12 and whole.metadata == {"a": "b"} and whole.instructions == "be kind"
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    chat = server.post({"messages": messages, "temperature": 0, "max_tokens": 12}, CHAT).json()
    assert chat["choices"][0]["message"]["content"] == whole.output_text
    assert chat["usage"]["prompt_tokens"] == whole.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_result(server: Server, client: openai.OpenAI, stream: bool):
    asked: Any = {"model": client.models.list().data[0].id, "tools": [TOOL], "max_output_tokens": 200}
    with unharmed(server):
        if stream:
            with client.responses.stream(input="hello", tool_choice=FORCED, **asked) as events:
                first: Response = events.get_final_response()
        else:
            first = client.responses.create(input="hello", tool_choice=FORCED, **asked)
        call: Any = first.output[0]
        assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Oslo"} and first.status == "completed"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        second = client.responses.create(input=[result], previous_response_id=first.id, tool_choice="none", **asked)
        explicit = client.responses.create(input=[USER | {"content": "hello"}, call.to_dict(), result], tool_choice="none", **asked)
    assert second.usage and explicit.usage and second.usage.input_tokens == explicit.usage.input_tokens
    assert second.previous_response_id == first.id


def test_structured_output(server: Server, client: openai.OpenAI):
    class City(BaseModel):
        name: bool

    with unharmed(server):
        parsed = client.responses.parse(model=client.models.list().data[0].id, input="hello", text_format=City, max_output_tokens=100)
    assert isinstance(parsed.output_parsed, City)


def test_a_forced_call_has_no_text_to_be_formatted(server: Server):
    """As instructor asks for both."""
    format = {"type": "json_schema", "name": "b", "schema": {"type": "object"}}
    body = {"input": "a", "tools": [TOOL], "tool_choice": "required", "text": {"format": format}, "max_output_tokens": 200}
    assert [item["type"] for item in server.post(body, RESPONSES).json()["output"]][:1] == ["function_call"]


def test_what_is_kept(server: Server, client: openai.OpenAI):
    model = client.models.list().data[0].id
    first = client.responses.create(model=model, input="hello", max_output_tokens=3)
    assert client.responses.retrieve(first.id).output == first.output
    [item] = client.responses.input_items.list(first.id).data
    assert item.to_dict()["content"] == [{"type": "input_text", "text": "hello"}]
    reference: Any = [USER, {"type": "item_reference", "id": first.output[0].to_dict()["id"]}, USER]
    assert client.responses.create(model=model, input=reference, max_output_tokens=3).status == "incomplete"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    unstored = client.responses.create(model=model, input="hello", max_output_tokens=3, store=False)
    with pytest.raises(openai.BadRequestError, match="not kept") as error:
        client.responses.create(model=model, input="hello", previous_response_id=unstored.id)
    assert error.value.code == "previous_response_not_found" and error.value.param == "previous_response_id"
    count = client.responses.input_tokens.count(model=model, input="hello")
    assert first.usage and count.input_tokens == first.usage.input_tokens


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hosted tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "hosted choice": ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    "background": ({"background": True}, "background"),
    "conversation": ({"conversation": "conv_1"}, "conversation"),
    "template": ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "summary": ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity"),
    "n": ({"n": 2}, "n"),
    "include": ({"include": ["everything"]}, "include[0]"),
    "schema": ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    "bad schema": ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "nothing"}}}}, "text.format.schema"),
    "image": ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    "no such call": ({"input": [USER, OUTPUT]}, "input[1].tool_call_id"),
    "bad function": ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    "nothing": ({"input": []}, "input"),
    "too long": ({"input": "a" * 9000}, "input"),
    "limit": ({"max_output_tokens": 0}, "max_output_tokens"),
    "another's item": ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input[0].id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_by_name(server: Server, name: str):
    body, field = REFUSED[name]
    response = server.post({"input": "a", "max_output_tokens": 1, **body}, RESPONSES)
    assert error_of(response, 404 if name == "another's item" else 400)["param"] == field


def test_integers_without_end_come_back(server: Server):
    """msgspec writes none of 2⁶⁴ or more: a response that says them again must not fail."""
    tool = {"type": "function", "name": "a", "parameters": {"type": "object", "properties": {"b": {"default": 2**70}}}}
    with unharmed(server):
        response = server.post({"input": "a", "tools": [tool], "max_output_tokens": 1}, RESPONSES)
        assert response.json()["tools"][0]["parameters"]["properties"]["b"]["default"] == 2**70
        asked = server.http.get(f"{RESPONSES}/{response.json()['id']}/input_items")
        assert asked.status_code == 200
