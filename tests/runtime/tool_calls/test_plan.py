"""A request with tools: what is checked, what the answer is held to, and both rounds of a chat."""

from __future__ import annotations

import json
from contextlib import suppress

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupola.runtime.errors import RequestError
from cupola.runtime.tool_calls.checks import check_tool_choice, check_tools
from cupola.runtime.tool_calls.plan import plan_chat
from tests.runtime.tool_calls.examples import ASK, CHATML, HERMES, LLAMA, MISTRAL, TIME, TOOLS, WEATHER

NAMED = {"type": "function", "function": {"name": "get_time"}}
RECURSIVE = {
    "type": "object",
    "properties": {"node": {"$ref": "#/$defs/Node"}, "again": {"$ref": "#"}, "word": {"enum": ["#/x", {"$ref": "#/x"}]}},
    "$defs": {
        "Node": {"type": "object", "properties": {"$ref": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}}, "required": ["$ref"]}
    },
    "additionalProperties": False,
}


def function(**fields: object) -> dict:
    return {"type": "function", "function": {"name": "f"} | fields}


def nested(depth: int) -> dict:
    schema: dict = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


BAD_TOOLS = {
    "tools": ("x", {}, [function(name=f"f{i}") for i in range(129)], [function(name=f"f{i}", description="x" * 60_000) for i in range(4)]),
    "tools[0]": ([1], [{}], [{"type": "custom", "custom": {"name": "x"}}], [{"type": "function", "function": 1}]),
    "tools[0].function.name": tuple([function(name=name)] for name in (None, 1, "", "a b", "é", "x" * 65, "f\n")),
    "tools[1].function.name": ([WEATHER, WEATHER],),
    "tools[0].function.description": ([function(description=1)],),
    "tools[0].function.strict": ([function(strict="yes")],),
    "tools[0].function.parameters": tuple(
        [function(parameters=p)] for p in (1, [], "{}", {"type": "string"}, {"type": ["object", "null"]})
    ),
    "tools[0].function.parameters.properties": ([function(parameters={"type": "object", "properties": [1]})],),
    "tools[0].function": (
        [function(description="x" * 70_000)],
        [function(parameters=nested(40))],
        [function(parameters=nested(50_000))],
        [function(parameters={"type": "object", "maxProperties": float("nan")})],
    ),
}


@pytest.mark.parametrize(("field", "tools"), [(field, entry) for field, entries in BAD_TOOLS.items() for entry in entries])
def test_bad_tools_are_refused_by_field(field, tools):
    with pytest.raises(RequestError) as caught:
        check_tools(tools)
    assert caught.value.field == field and caught.value.fix and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("choice", "tools", "field"),
    [
        ("maybe", TOOLS, "tool_choice"),
        (1, TOOLS, "tool_choice"),
        ({}, TOOLS, "tool_choice"),
        ({"type": "function"}, TOOLS, "tool_choice"),
        ("required", [], "tool_choice"),
        ("required", None, "tool_choice"),
        (NAMED, [], "tool_choice"),
        (NAMED, [WEATHER], "tool_choice.function.name"),
        ({"type": "function", "function": {}}, TOOLS, "tool_choice.function.name"),
    ],
)
def test_bad_choices_are_refused_by_field(choice, tools, field):
    with pytest.raises(RequestError) as caught:
        plan_chat(HERMES, ASK, tools=tools, tool_choice=choice)
    assert caught.value.field == field and caught.value.fix


def test_parallel_tool_calls_is_a_bool():
    with pytest.raises(RequestError, match="parallel_tool_calls"):
        plan_chat(HERMES, ASK, tools=TOOLS, parallel_tool_calls=1)


@pytest.mark.parametrize(
    ("choice", "tools", "mode"), [(None, TOOLS, "auto"), (None, None, "none"), ("auto", [], "none"), ("none", TOOLS, "none")]
)
def test_choices(choice, tools, mode):
    assert check_tool_choice(choice, check_tools(tools)).mode == mode


VALUES = (None, True, 0, 1.5, "", "x", "f", "user", "assistant", "tool", "function", "text", "object", "required", "{}", "\ud800")
KEYS = ("role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments", "parameters", "properties", "$defs",
        "$ref", "strict", "text", "description")  # fmt: skip


def objects(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)


rubbish = st.recursive(st.sampled_from(VALUES), objects, max_leaves=20)
near_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": rubbish},
    optional={"tool_calls": rubbish, "tool_call_id": rubbish, "name": rubbish},
)
near_messages = st.lists(near_message, max_size=3)
near_functions = st.fixed_dictionaries({"name": st.sampled_from(["f", "g"])}, optional={"parameters": rubbish, "strict": rubbish})
near_tools = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": near_functions}), max_size=2)


@settings(max_examples=300, deadline=None)
@given(
    template=st.sampled_from([CHATML, HERMES, LLAMA, MISTRAL]),
    messages=rubbish | near_messages,
    tools=rubbish | near_tools,
    choice=st.sampled_from([None, "auto", "required", {"type": "function", "function": {"name": "f"}}]) | rubbish,
    parallel=rubbish,
)
def test_whatever_comes_is_planned_or_refused(template, messages, tools, choice, parallel):
    with suppress(RequestError):
        plan = plan_chat(template, messages, tools=tools, tool_choice=choice, parallel_tool_calls=parallel)
        json.dumps([plan.messages, plan.tools, plan.constraint])
        plan.parse("[")


def accepts(schema: object, value: object) -> bool:
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    return validator.is_valid(value)


def test_required_calls_are_a_list_that_fits_one_of_the_tools_each():
    tools = [WEATHER, function(name="walk", parameters=RECURSIVE), function(name="now")]
    schema = plan_chat(CHATML, ASK, tools=tools, tool_choice="required").constraint["json"]
    walk = {"name": "walk", "parameters": {"node": {"$ref": 1, "next": {"$ref": 2}}, "again": {"word": "#/x"}}}
    assert accepts(schema, [walk])
    assert accepts(schema, [walk, {"name": "now", "parameters": {}}, {"name": "get_weather", "parameters": {"city": "Rome"}}])
    assert accepts(schema, [{"name": "walk", "parameters": {"word": {"$ref": "#/x"}}}])
    for wrong in (
        [],
        walk,
        [{"name": "get_weather", "parameters": {}}],
        [{"name": "other", "parameters": {}}],
        [{"name": "now"}],
        [{"name": "now", "parameters": {"x": 1}}],
        [{"name": "walk", "parameters": {"node": {"$ref": 1, "next": {"$ref": "2"}}}}],
        [{"name": "walk", "parameters": {"again": {"again": {"x": 1}}}}],
        [walk] * 17,
    ):
        assert not accepts(schema, wrong)
    one = plan_chat(CHATML, ASK, tools=tools, tool_choice="required", parallel_tool_calls=False).constraint["json"]
    assert accepts(one, [walk]) and not accepts(one, [walk, walk])


def test_a_named_function_is_held_to_its_own_schema():
    plan = plan_chat(CHATML, ASK, tools=TOOLS, tool_choice=NAMED)
    assert plan.constraint == {"json": TIME["function"]["parameters"], "strict": True}
    bare = plan_chat(CHATML, ASK, tools=[function(parameters={"$ref": "#/$defs/x", "$defs": {"x": {}}})], tool_choice="auto")
    assert bare.constraint is None
    (constraint,) = (plan_chat(CHATML, ASK, tools=[function()], tool_choice={"type": "function", "function": {"name": "f"}}).constraint,)
    assert accepts(constraint["json"], {}) and not accepts(constraint["json"], {"x": 1}) and not accepts(constraint["json"], [])


def test_strict_functions_are_held_to_their_schema_once_a_call_begins():
    strict = function(name="now", strict=True, parameters=RECURSIVE)
    constraint = plan_chat(HERMES, ASK, tools=[strict, WEATHER], parallel_tool_calls=False).constraint
    tag = json.loads(constraint["structural_tag"])["format"]
    assert tag["triggers"] == ["<tool_call>"] and tag["stop_after_first"] is True
    assert [entry["content"]["json_schema"] for entry in tag["tags"]] == [RECURSIVE, {"type": "object"}]
    begin, end = tag["tags"][0]["begin"], tag["tags"][0]["end"]
    answer = plan_chat(HERMES, ASK, tools=[strict]).parse(f"Well. {begin}{{}}{end}")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("now", "{}")]
    assert plan_chat(MISTRAL, ASK, tools=[strict]).constraint is None


@pytest.mark.parametrize(
    ("choice", "text", "calls"),
    [
        ("auto", '<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>', [("get_time", '{"zone": "CET"}')]),
        ("auto", ' {"name": "get_time", "arguments": {"zone": "CET"}}', [("get_time", '{"zone": "CET"}')]),
        ("auto", '[{"name": "get_time", "parameters": {"zone": "CET"}}]', [("get_time", '{"zone": "CET"}')]),
        ("auto", '{"name": "Ann"}', []),
        ("auto", "Noon.", []),
        ("required", ' [ {"name": "get_time", "parameters": {"zone": "CET"}}]\n', [("get_time", '{"zone": "CET"}')]),
        (NAMED, '{"zone": "CET"}\n', [("get_time", '{"zone": "CET"}')]),
    ],
)
def test_two_rounds(choice, text, calls):
    plan = plan_chat(CHATML, ASK, tools=TOOLS, tool_choice=choice)
    message = plan.parse(text)
    assert [(call.name, call.arguments) for call in message.tool_calls] == calls
    stream = plan.open_stream()
    assert [delta for piece in text for delta in stream.push(piece)] + stream.finish() != []
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12:00"} for call in message.tool_calls]
    for template in (CHATML, HERMES, LLAMA, MISTRAL):
        assert len(plan_chat(template, [*ASK, message.as_openai(), *results], tools=TOOLS).messages) >= 3


@pytest.mark.parametrize(
    ("choice", "text", "arguments"),
    [
        (NAMED, '{"zone": "C', '{"zone": "C'),
        ("required", '[{"name": "get_time", "parameters": {"zone": "C', '{"zone": "C'),
        ("required", '[{"name": "get_time", "parameters": {"zone"', '{"zone"'),
    ],
)
def test_a_forced_call_that_is_cut_off_is_a_call_streamed_or_not(choice, text, arguments):
    plan = plan_chat(CHATML, ASK, tools=TOOLS, tool_choice=choice)
    answer, stream = plan.parse(text), plan.open_stream()
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [("get_time", arguments)] and answer.content is None
    deltas = [delta for piece in text for delta in stream.push(piece)] + stream.finish()
    assert "".join(delta.arguments for delta in deltas) == arguments and stream.num_calls == 1
    assert answer.finish_reason("length") == stream.finish_reason("length") == "length"


def test_special_tokens_are_kept_only_where_they_mark_calls():
    tokens = ("<s>", "</s>", "[TOOL_CALLS]")
    assert plan_chat(MISTRAL, ASK, tools=TOOLS, special_tokens=tokens).skip_special_tokens is False
    assert plan_chat(MISTRAL, ASK, tools=TOOLS, tool_choice="required", special_tokens=tokens).skip_special_tokens is True
    assert plan_chat(MISTRAL, ASK, special_tokens=tokens).skip_special_tokens is True
    assert plan_chat(HERMES, ASK, tools=TOOLS, special_tokens=tokens).skip_special_tokens is True
    plan = plan_chat(MISTRAL, ASK, tools=TOOLS, special_tokens=tokens)
    assert plan.parse("Hello</s>").content == "Hello"
    assert len(plan.parse('[TOOL_CALLS]get_time[ARGS]{"zone": "CET"}</s>').tool_calls) == 1
