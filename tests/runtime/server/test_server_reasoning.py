"""Thinking over HTTP: told apart, switched off, held to a budget, before structured output; and prompts counted as chat makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.runtime.server.harness import CHAT, Server, error_of, run_server
from tests.runtime.tiny_artifact import VOCAB, make_artifact

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\n"
    "{% endfor %}{% for d in documents or [] %}[{{ d.text }}]{% endfor %}{{ reasoning_effort }}"
    "{% if add_generation_prompt %}bot:<think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}"
)
SAID = "\nxyz</think>AB"  # each character is followed by the next one, and B by the end
USER = {"role": "user", "content": "Hi"}
STOP = 262


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    weight = np.zeros((VOCAB, VOCAB), np.float32)
    for now, then in pairwise(SAID):
        weight[ord(now), ord(then)] = 8
    weight[ord("B"), STOP] = 8
    folder = tmp_path_factory.mktemp("thinker")
    with run_server(make_artifact(folder / "artifact", context=2048, template=TEMPLATE, weight=weight).path, folder) as server:
        yield server


def ask(server: Server, **fields: Any) -> tuple[str | None, str | None]:
    """Thinking and content of the answer, which must be the same streamed."""
    body = {"messages": [USER], "temperature": 0, "max_tokens": 40, **fields}
    response = server.post(body, CHAT)
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    deltas = [choice["delta"] for event in server.events(body, CHAT) for choice in event["choices"]]
    for name in ("reasoning_content", "reasoning", "content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == (message.get(name) or ""), name
    assert message.get("reasoning") == message.get("reasoning_content")
    return message.get("reasoning_content"), message["content"]


def test_thinking_is_told_from_the_answer(thinker: Server):
    assert ask(thinker) == ("xyz", "AB")
    assert ask(thinker, max_tokens=2) == ("xy", "")
    assert ask(thinker, include_reasoning=False) == (None, "AB")


@pytest.mark.parametrize(
    "fields", [{"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}, {"reasoning_effort": "none"}]
)
def test_thinking_can_be_switched_off(thinker: Server, fields: dict[str, Any]):
    """This model goes on as ever, only that nothing of it counts as thinking."""
    assert ask(thinker, **fields) == (None, "xyz</think>AB")


@pytest.mark.parametrize(("budget", "thinking"), [(0, None), (1, "x"), (2, "xy"), (30, "xyz"), (-1, "xyz")])
def test_thinking_has_a_budget(thinker: Server, budget: int, thinking: str | None):
    assert ask(thinker, thinking_token_budget=budget) == (thinking, "AB")


@pytest.mark.parametrize(
    ("structure", "content"),
    [
        ({"guided_choice": ["Q"]}, "Q"),
        ({"guided_regex": "[0-9]Q"}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": 7}}}}, "7"),
        ({"guided_choice": ["Q"], "thinking_token_budget": 1}, "Q"),
    ],
)
def test_structure_begins_after_the_thinking(thinker: Server, structure: dict[str, Any], content: str | None):
    thinking, said = ask(thinker, **structure)
    assert thinking == ("x" if "thinking_token_budget" in structure else "xyz")
    assert said == content if content else said and len(said) == 2 and said[1] == "Q"


def test_a_forced_call_begins_after_the_thinking(thinker: Server):
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    }
    body = {
        "messages": [USER],
        "temperature": 0,
        "max_tokens": 90,
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }
    message = thinker.post(body, CHAT).json()["choices"][0]["message"]
    call = message["tool_calls"][0]["function"]
    assert (message["reasoning_content"], call["name"], json.loads(call["arguments"])) == ("xyz", "f", {})


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
PROMPTS: list[dict[str, Any]] = [
    {},
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": "none"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    {"messages": [USER, {"role": "assistant", "content": "So "}], "continue_final_message": True, "add_generation_prompt": False},
    {"messages": [USER, {"role": "assistant", "content": "a", "reasoning": "b"}, USER]},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"reasoning_effort": "high", "documents": [{"title": "t", "text": "x"}]},
    {"add_special_tokens": True, "add_generation_prompt": False},
]


@pytest.mark.parametrize("fields", PROMPTS)
def test_tokens_of_a_chat_are_those_that_it_is_answered_from(thinker: Server, fields: dict[str, Any]):
    body = {"messages": [USER], "max_tokens": 1, "temperature": 0, "return_token_ids": True, **fields}
    answer, tokens = thinker.post(body, CHAT).json(), thinker.post(body, "/tokenize").json()
    assert tokens["count"] == len(tokens["tokens"]) == answer["usage"]["prompt_tokens"]


def text_of(server: Server, **fields: Any) -> str:
    """The prompt that the server makes."""
    tokens = server.post({"messages": [USER], **fields}, "/tokenize").json()["tokens"]
    text: str = server.post({"tokens": tokens}, "/detokenize").json()["prompt"]
    return text


def test_templates_see_what_requests_say(thinker: Server):
    assert text_of(thinker, messages=[USER, {"role": "assistant", "content": "a", "reasoning_content": "b"}]).startswith(
        "user:Hi\nassistant:<think>b</think>a\n"
    )
    assert "[x]high" in text_of(thinker, reasoning_effort="high", documents=[{"text": "x"}])
    assert text_of(thinker, messages=[USER, {"role": "assistant", "content": "So "}], continue_final_message=True).endswith("assistant:So ")


def test_what_can_not_be_honoured_is_refused(thinker: Server, server: Server):
    error = error_of(thinker.post({"messages": [USER], "chat_template_kwargs": {"messages": []}}, CHAT))
    assert error["param"] == "chat_template_kwargs"
    for field, value in (("thinking_token_budget", 5), ("documents", [{"text": "a"}])):
        error = error_of(server.post({"messages": [USER], field: value}, CHAT))
        assert error["param"] == field
    assert error_of(server.post({"prompt": "a", "thinking_token_budget": 5}))["param"] == "thinking_token_budget"
    assert json.dumps(server.post({"messages": [USER], "max_tokens": 1, "enable_thinking": False}, CHAT).json()).count("reasoning") == 0


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": ["yzA"]}, {"logprobs": True}])
def test_token_ids_of_chats_come_in_streams_too(thinker: Server, fields: dict[str, Any]):
    body = {"messages": [USER], "temperature": 0, "max_tokens": 20, "return_token_ids": True, **fields}
    whole, events = thinker.post(body, CHAT).json(), list(thinker.events(body, CHAT))
    assert whole["prompt_token_ids"] == thinker.post(body, "/tokenize").json()["tokens"]
    assert [event["prompt_token_ids"] for event in events if "prompt_token_ids" in event] == [whole["prompt_token_ids"]]
    for choice in whole["choices"]:
        mine = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        assert [token_id for each in mine for token_id in each.get("token_ids", ())] == choice["token_ids"]


def test_token_ids_of_completions_come_in_streams_too(thinker: Server):
    body = {"prompt": [[10], [10, 10]], "n": 2, "temperature": 0, "max_tokens": 8, "return_token_ids": True}
    whole, events = thinker.complete(**body), list(thinker.events(body))
    for choice in whole["choices"]:
        mine = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        assert [token_id for each in mine for token_id in each["token_ids"]] == choice["token_ids"]
        assert [each["prompt_token_ids"] for each in mine if "prompt_token_ids" in each] == [choice["prompt_token_ids"]]


def test_an_echo_alone_counts_no_tokens(thinker: Server):
    answer = thinker.complete(prompt="ab", echo=True, max_tokens=0, logprobs=1, return_token_ids=True)
    assert answer["usage"]["completion_tokens"] == 0 and answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] == 2
    assert answer["choices"][0]["token_ids"] == [] and answer["choices"][0]["text"] == "ab"
