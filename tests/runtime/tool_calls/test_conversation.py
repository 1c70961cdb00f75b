"""Chats with tools become prompts: by the template where it can, by words where it can't."""

from __future__ import annotations

import copy
import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from cupola.runtime.errors import RequestError
from cupola.runtime.text.chat_template import ChatTemplate
from cupola.runtime.tool_calls.formats import read_template
from cupola.runtime.tool_calls.plan import plan_chat
from tests.runtime.tool_calls.examples import ASK, CALLS, CHAT, CHATML, HERMES, LLAMA, MISTRAL, NO_SYSTEM, PLAIN_CHAT, RESULTS, TOOLS, call

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template: str, messages: list, **fields: object) -> str:
    plan = plan_chat(template, messages, **fields)
    chat = ChatTemplate(template, TOKENS)
    try:
        return chat.render(plan.messages, tools=plan.tools)
    finally:
        chat.close()


def reference(template: str, messages: list, tools: list | None) -> str:
    (text,), _ = render_jinja_template([messages], tools=tools, chat_template=template, add_generation_prompt=True, **TOKENS)
    return text


def test_a_template_that_knows_tools_gets_what_transformers_gives_it():
    assert render(HERMES, CHAT, tools=TOOLS) == reference(HERMES, PLAIN_CHAT, TOOLS)


def test_a_template_that_knows_no_tools_says_what_one_that_does_would_say():
    expected = reference(HERMES, PLAIN_CHAT, TOOLS)
    assert "<tools>" in expected and "<tool_response>\nsunny\n</tool_response>\n<tool_response>" in expected
    assert render(CHATML, CHAT, tools=TOOLS) == expected
    assert render(CHATML, CHAT[1:], tools=TOOLS) == reference(HERMES, PLAIN_CHAT[1:], TOOLS)


def test_instructions_go_to_the_user_where_there_is_no_system():
    messages = [{"role": "user", "content": "Hi"}]
    assert render(NO_SYSTEM, messages) == reference(CHATML, messages, None)
    (sent,) = plan_chat(NO_SYSTEM, messages, tools=TOOLS).messages
    assert sent["role"] == "user" and "get_weather" in sent["content"] and sent["content"].endswith("\n\nHi")


def test_calls_at_once_become_calls_in_turn_where_a_template_wants_that():
    a, b = ({**PLAIN_CHAT[2], "tool_calls": [one]} for one in PLAIN_CHAT[2]["tool_calls"])
    in_turn = [*PLAIN_CHAT[:2], a, PLAIN_CHAT[3], b, PLAIN_CHAT[4], *PLAIN_CHAT[5:]]
    assert render(LLAMA, CHAT, tools=TOOLS) == reference(LLAMA, in_turn, TOOLS)


def test_ids_are_what_the_template_wants_and_still_match():
    text = render(MISTRAL, [*ASK, CALLS, *reversed(RESULTS)], tools=TOOLS)
    calls = json.loads(text.split("[TOOL_CALLS]")[1].split("</s>")[0])
    results = dict(part.split("[/TOOL")[0].split(" ", 1) for part in text.split("[TOOL_RESULTS]")[1:])
    assert {entry["name"]: results[entry["id"]] for entry in calls} == {"get_weather": "sunny", "get_time": "noon"}
    kept = [*ASK, {**CALLS, "tool_calls": [call("aB3dE6gH9", "get_time", "{}")]}]
    assert '"id": "aB3dE6gH9"' in render(MISTRAL, kept, tools=TOOLS)


@pytest.mark.parametrize(
    ("template", "name", "lists", "results"),
    [
        (CHATML, "instructed", False, False),
        (HERMES, "hermes", True, True),
        (LLAMA, "llama3", True, True),
        (MISTRAL, "mistral", True, True),
        ("{% if tools %}{{ tools }}{% endif %}<unheard of>", "instructed", False, False),  # its calls could not be read
        ("You have tools. <tool_call> {{ 'tools' }} {{ message.tools }} {%", "instructed", False, False),
        ("{{ tools }}<|tool_call_begin|>", "kimi", True, False),
        ("{{ tools }}<｜tool▁call▁begin｜>", "deepseek", True, False),
    ],
)
def test_what_a_template_does_is_read_off_its_text(template, name, lists, results):
    traits = read_template(template)
    assert (traits.format.name, traits.lists_tools, traits.shows_results) == (name, lists, results)


def test_hostile_templates_are_read_in_linear_time():
    for unit in ("{%", "{{'", "'\"", "{% '\\"):
        read_template(unit * 500_000)


def test_no_tools_are_shown_if_none_may_be_called():
    assert render(HERMES, ASK, tools=TOOLS, tool_choice="none") == reference(HERMES, PLAIN_CHAT[:2], None)
    assert render(CHATML, ASK, tools=TOOLS, tool_choice="none") == reference(CHATML, PLAIN_CHAT[:2], None)
    plan = plan_chat(HERMES, CHAT, tools=TOOLS, tool_choice="none")
    assert plan.parse('<tool_call>{"name": "get_time"}</tool_call>').tool_calls == ()


def test_the_request_is_left_as_it_was():
    chat, tools = copy.deepcopy(CHAT), copy.deepcopy(TOOLS)
    for template in (CHATML, HERMES, LLAMA, MISTRAL):
        plan_chat(template, chat, tools=tools)
    assert (chat, tools) == (CHAT, TOOLS)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("{}", {}),
        ("", {}),
        (None, {}),
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ('{"a', '{"a'),
        ("[1]", "[1]"),
        ('{"a": NaN}', '{"a": NaN}'),
    ],
)
def test_arguments_become_objects_and_broken_ones_stay(given, shown):
    plan = plan_chat(HERMES, [*ASK, {"role": "assistant", "tool_calls": [call("x", "f", given)]}], tools=TOOLS)
    assert plan.messages[-1]["tool_calls"][0]["function"]["arguments"] == shown


def test_developers_are_the_system_unless_the_template_knows_them():
    messages = [{"role": "developer", "content": "Be brief."}, ASK[1]]
    assert plan_chat(CHATML, messages).messages[0] == ASK[0]
    assert plan_chat("{{ 'developer' }}", messages).messages[0] == messages[0]


BAD_PARTS = (
    {"type": "image_url", "image_url": {"url": "data:,"}},
    {"type": "text"},
    {"type": "text", "text": 1},
    "text",
    None,
    {"type": []},
)
BAD_CALLS = (
    1,
    {},
    {"id": "x", "type": "custom", "custom": {}},
    {"type": "function", "function": {"name": "f"}},
    {"id": "x", "function": 1},
)


def assistant(*calls: object) -> list:
    return [{"role": "assistant", "tool_calls": list(calls)}]


DEEP: list = []
for _ in range(5000):
    DEEP = [DEEP]
BAD_MESSAGES = {
    "messages": ([], "text", None, {}),
    "messages[0]": ([1], [{}], [{"role": "function", "content": "x"}], [{"role": 1, "content": "x"}], [{"role": ["user"], "content": "x"}]),
    "messages[0].content": (
        [{"role": "user"}],
        [{"role": "user", "content": 1}],
        [{"role": "system", "content": {}}],
        [{"role": "assistant", "content": None}],
        [{"role": "tool", "content": None, "tool_call_id": "x"}],
    ),
    "messages[0].content[1]": tuple([{"role": "user", "content": [{"type": "text", "text": "Look:"}, part]}] for part in BAD_PARTS),
    "messages[0].tool_calls": ([{"role": "assistant", "tool_calls": 1}], assistant(*CALLS["tool_calls"] * 65)),
    "messages[0].tool_calls[0]": tuple(assistant(entry) for entry in BAD_CALLS),
    "messages[0].tool_calls[0].function.name": (assistant(call("x", "a b", "{}")),),
    "messages[0].tool_calls[0].function.arguments": (assistant(call("x", "f", 1)), assistant(call("x", "f", {"a": DEEP}))),
    "messages[0].tool_call_id": ([RESULTS[0]], [{"role": "tool", "content": "x"}], [{"role": "tool", "content": "x", "tool_call_id": 1}]),
    "messages[2].tool_call_id": ([{**CALLS}, ASK[1], RESULTS[0]],),
    "messages[1].tool_call_id": ([CALLS, {**RESULTS[0], "tool_call_id": "call_3"}],),
}


@pytest.mark.parametrize(("field", "messages"), [(field, entry) for field, entries in BAD_MESSAGES.items() for entry in entries])
def test_bad_messages_are_refused_by_field(field, messages):
    with pytest.raises(RequestError) as caught:
        plan_chat(HERMES, messages)
    assert caught.value.field == field and caught.value.fix and "\n" not in str(caught.value)


def test_a_picture_is_refused_by_its_name():
    with pytest.raises(RequestError, match="image_url"):
        plan_chat(HERMES, BAD_MESSAGES["messages[0].content[1]"][0])
