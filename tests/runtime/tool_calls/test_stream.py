"""Answers are split into content and calls, wherever they are cut, and nothing is lost."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from cupola.runtime.tool_calls.calls import Answer, ContentDelta, ToolCall, ToolCallDelta
from cupola.runtime.tool_calls.formats import FORMATS, INSTRUCTED, NAMED, REQUIRED
from cupola.runtime.tool_calls.stream import ToolCallStream, parse_answer

NAMES = ("f", "get_weather", "a-B_9")
FUNCTIONS: dict = {name: {} for name in NAMES}
BY_NAME = {entry.name: entry for entry in (*FORMATS, INSTRUCTED)}


def dump(call: tuple[str, dict], key: str = "arguments") -> str:
    return json.dumps({"name": call[0], key: call[1]}, ensure_ascii=False)


def dump_all(calls: list, key: str = "arguments") -> str:
    return json.dumps([{"name": name, key: arguments} for name, arguments in calls])


def in_elements(name: str, arguments: dict) -> str:
    """As the templates of Qwen3-Coder and its kin write it."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    return f"<function={name}>\n" + "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items()) + "</function>"


def in_pairs(name: str, arguments: dict) -> str:
    """As GLM's templates write it."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    pairs = "".join(f"\n<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>" for key, value in values.items())
    return f"<tool_call>{name}{pairs}\n</tool_call>"


# How each format's models write calls, by their documentation.
WRITERS = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{dump(call)}\n</tool_call>" for call in calls),
    "llama3": lambda calls: "<|python_tag|>" + "; ".join(dump(call, "parameters") for call in calls),
    "mistral": lambda calls: f"[TOOL_CALLS] {dump_all(calls)}",
    "tool_call_token": lambda calls: f"<|tool_call|>{dump_all(calls)}<|/tool_call|>",
    "apriel": lambda calls: f"<tool_calls>{dump_all(calls)}</tool_calls>",
    "cohere": lambda calls: (
        "<|START_ACTION|>[\n    "
        + ",\n    ".join(json.dumps({"tool_call_id": "0", "tool_name": name, "parameters": arguments}) for name, arguments in calls)
        + "\n]<|END_ACTION|>"
    ),
    "functionary": lambda calls: "".join(f"<function={name}>{json.dumps(arguments)}</function>" for name, arguments in calls),
    "deepseek": lambda calls: (
        "<｜tool▁calls▁begin｜>"
        + "\n".join(
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(arguments)}\n```<｜tool▁call▁end｜>"
            for name, arguments in calls
        )
        + "<｜tool▁calls▁end｜>"
    ),
    "kimi": lambda calls: (
        "<|tool_calls_section_begin|>"
        + "".join(
            f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{json.dumps(arguments)}<|tool_call_end|>"
            for i, (name, arguments) in enumerate(calls)
        )
        + "<|tool_calls_section_end|>"
    ),
}
OTHER_WRITERS = {
    "mistral v11": ("mistral", lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}" for name, arguments in calls)),
    "deepseek v3.1": (
        "deepseek",
        lambda calls: (
            "<｜tool▁calls▁begin｜>"
            + "".join(f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(arguments)}<｜tool▁call▁end｜>" for name, arguments in calls)
            + "<｜tool▁calls▁end｜>"
        ),
    ),
    "llama3 bare": ("llama3", lambda calls: "; ".join(dump(call, "parameters") for call in calls)),
    "hermes indented": (
        "hermes",
        lambda calls: "".join(
            f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, indent=2)}</tool_call>" for name, arguments in calls
        ),
    ),
    "hermes turned round": (
        "hermes",
        lambda calls: "".join(f"<tool_call>{json.dumps({'arguments': arguments, 'name': name})}</tool_call>" for name, arguments in calls),
    ),
    "hermes in strings": (
        "hermes",
        lambda calls: "".join(f"<tool_call>{dump((name, json.dumps(arguments)))}</tool_call>" for name, arguments in calls),
    ),
    "OpenAI's own": (
        "hermes",
        lambda calls: "".join(
            f"<tool_call>{json.dumps({'type': 'function', 'function': {'name': name, 'arguments': arguments}})}</tool_call>"
            for name, arguments in calls
        ),
    ),
    "hermes, two at once": ("hermes", lambda calls: f"<tool_call>{dump_all(calls)}</tool_call>"),
    "hermes without its last bracket": (
        "hermes",
        lambda calls: "".join(f"<tool_call>\n{dump(call)[:-1]}\n</tool_call>" for call in calls),
    ),
}
ALL_WRITERS = {name: (name, writer) for name, writer in WRITERS.items()} | OTHER_WRITERS

strings = st.text(max_size=12) | st.sampled_from(['"', "\\", "}{", "</tool_call>", "[", '\\\\"', "😀"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings
json_values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3), max_leaves=6)
calls_of_chats = st.lists(st.tuples(st.sampled_from(NAMES), st.dictionaries(strings, json_values, max_size=3)), min_size=1, max_size=3)
words = st.lists(st.sampled_from(["Let", "me", "look", "<", "a < b", "[", "\n", " ", "<tool", "ö", "1."]), max_size=6).map(" ".join)
cuts = st.lists(st.integers(0, 400), max_size=12)


def gather(deltas: list) -> Answer:
    """Collects a stream as a client does."""
    content, calls = "", []
    for delta in deltas:
        shape = ChoiceDelta.model_validate(delta.as_openai(), strict=True)
        content += shape.content or ""
        for piece in shape.tool_calls or []:
            if piece.function.name is not None:
                assert piece.index == len(calls) and piece.id and piece.type == "function"
                calls.append([piece.id, piece.function.name, ""])
            assert piece.index == len(calls) - 1
            calls[-1][2] += piece.function.arguments
    assert len({call[0] for call in calls}) == len(calls)
    return Answer(content or None if calls else content, tuple(ToolCall("", name, arguments) for _, name, arguments in calls))


def read(text: str, at: list[int], format: str, functions: dict = FUNCTIONS, **options: object) -> Answer:
    stream = ToolCallStream(BY_NAME.get(format), functions, **options)
    bounds = [0, *sorted(min(cut, len(text)) for cut in at), len(text)]
    deltas = [delta for start, end in pairwise(bounds) for delta in stream.push(text[start:end])]
    return gather(deltas + stream.finish())


def decoded(answer: Answer) -> list:
    return [(call.name, json.loads(call.arguments)) for call in answer.tool_calls]


MARKUP_WRITERS = {
    "seed": lambda calls: "\n".join(f"<seed:tool_call>\n{in_elements(*call)}\n</seed:tool_call>" for call in calls),
    "qwen_xml": lambda calls: "\n".join(f"<tool_call>\n{in_elements(*call)}\n</tool_call>" for call in calls),
    "glm": lambda calls: "\n".join(in_pairs(*call) for call in calls),
}
SCHEMA = {
    "properties": {
        "text": {"type": "string"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "word": {"enum": ["1", "true"]},
        "number": {"type": "number"},
        "on": {"type": ["boolean", "null"]},
        "list": {"type": "array"},
        "map": {"type": "object"},
    }
}
values = st.text(max_size=12).filter(lambda text: not re.match(r"\n|.*\n\Z", text, re.DOTALL)) | st.sampled_from(
    ["1", "null", "</tool_call>", "a\n\nb"]
)
arguments_of_schema = st.fixed_dictionaries(
    {},
    optional={
        "text": values,
        "maybe": st.none() | values.filter(lambda text: text.strip() != "null"),
        "word": st.sampled_from(["1", "true"]),
        "number": st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        "on": st.booleans() | st.none(),
        "list": st.lists(json_values, max_size=2),
        "map": st.dictionaries(strings, json_values, max_size=2),
        "unknown": st.integers() | st.sampled_from(["a b", "{", ""]),
    },
)


@pytest.mark.parametrize("format", MARKUP_WRITERS)
@settings(max_examples=40, deadline=None)
@given(calls=st.lists(st.tuples(st.sampled_from(NAMES), arguments_of_schema), min_size=1, max_size=3), at=cuts)
def test_arguments_in_markup_become_what_their_schema_says(format, calls, at):
    text = f"Well.\n\n{MARKUP_WRITERS[format](calls)}\n"
    functions = dict.fromkeys(NAMES, SCHEMA)
    streams = [
        read(text, [], format, functions, whole=True),
        read(text, at, format, functions, whole=True),
        read(text, at, format, functions),
    ]
    assert decoded(streams[0]) == calls and streams[0].content == "Well."
    assert streams[1] == streams[0] and streams[2] == streams[0]


def test_pythons_words_are_read_in_markup():
    text = in_pairs("f", {"on": "True", "maybe": "None", "text": "None", "unknown": "False"})
    assert decoded(read(text, [], "glm", {"f": SCHEMA})) == [("f", {"on": True, "maybe": None, "text": "None", "unknown": False})]


@pytest.mark.parametrize("style", ALL_WRITERS)
@settings(max_examples=25, deadline=None)
@given(before=words, calls=calls_of_chats, at=cuts)
def test_calls_are_found_wherever_the_text_is_cut(style, before, calls, at):
    format, write = ALL_WRITERS[style]
    before = "" if style == "llama3 bare" else before
    text = f"{before}\n{write(calls)}\n"
    whole = read(text, [], format, whole=True)
    assert decoded(whole) == calls
    assert (whole.content or "") == before.rstrip()
    assert read(text, at, format, whole=True) == whole
    assert read(text, at, format) == whole


PIECES = (
    *{part for entry in FORMATS for part in (*entry.begins, *entry.ends, *entry.frames)},
    "<function=f>", "</function>", "<parameter=a>", "</parameter>", "<arg_key>a</arg_key>", "<arg_value>", "</arg_value>",
    "<tool_", "</tool_call", "[TOOL", "f", "[ARGS]", "functions.f:0", "<｜tool▁sep｜>", "<|tool_call_argument_begin|>", "```json",
    '{"name": "f", "arguments": ', '{"name": "f"', '{"name": "unknown", "parameters": ', '{"a": 1}', '{"a', "{", "}", "[", "]", '"', "\\",
    ",", ";", " ", "\n", "text", "{}", '"x": 1', "<|end|>",
)  # fmt: skip


@pytest.mark.parametrize("format", BY_NAME)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=14), at=cuts)
def test_rubbish_reads_the_same_wherever_it_is_cut(format, pieces, at):
    text = "".join(pieces)
    options = {"special_tokens": ("<|end|>",)}
    whole, streamed = read(text, [], format, whole=True, **options), read(text, [], format, **options)
    assert read(text, at, format, whole=True, **options) == whole
    assert read(text, at, format, **options) == streamed
    assert all(isinstance(json.loads(call.arguments), dict) for call in whole.tool_calls)
    ChatCompletionMessage.model_validate(whole.as_openai())
    frames = (*BY_NAME[format].frames, "<|end|>")
    if not whole.tool_calls:
        without = re.compile("|".join(map(re.escape, frames)))
        assert without.sub("", whole.content) == without.sub("", text)


def test_half_a_marker_waits_and_content_does_not():
    stream = ToolCallStream(BY_NAME["hermes"], FUNCTIONS)
    assert gather(stream.push("I am <b>")).content == "I am <b>"
    assert stream.push("<tool_") == []
    assert gather(stream.push("box> <tool_call")).content == "<tool_box>"
    assert stream.push('>{"name": "f"') == []
    (start,) = stream.push(', "arguments": ')[:1] or stream.push("{")[:1]
    assert (start.index, start.name, start.arguments) == (0, "f", "")
    assert [delta.arguments for delta in stream.push('"city": "Zür')] == ['{"city": "Zür'[1:]]
    assert stream.push('ich"}}\n</tool_call>')[-1] == ToolCallDelta(0, 'ich"}')
    assert stream.finish() == [] and stream.finish_reason("stop") == "tool_calls"


BROKEN = {
    "no JSON": "<tool_call>get_weather</tool_call>",
    "unknown function": '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
    "no name": '<tool_call>{"arguments": {}}</tool_call>',
    "a list for arguments": '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    "text for arguments": '<tool_call>{"name": "f", "arguments": "a"}</tool_call>',
    "nothing": "<tool_call></tool_call>",
    "cut off at once": "<tool_call>",
    "cut off before the name": '<tool_call>{"name": "f',
    "deep": "<tool_call>" + '{"name":' * 5000,
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_no_call_is_content(fault):
    for options in ({}, {"whole": True}):
        assert read(f"a {BROKEN[fault]} b", [5, 20], "hermes", **options) == Answer(f"a {BROKEN[fault]} b", ())


@pytest.mark.parametrize("arguments", ['{"a": 1', '{"a: 1}', "{a}", '{"a": NaN}', '{"a": "\n"}', "{" * 5000 + "}" * 5000])
def test_broken_arguments_are_content_in_the_whole_and_themselves_in_a_stream(arguments):
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}'
    assert read(text, [], "hermes", whole=True) == Answer(text, ())
    (call,) = read(text, [60], "hermes").tool_calls
    assert (call.name, call.arguments) == ("f", arguments)


@pytest.mark.parametrize("depth", [80, 300, 450, 900, 990, 100_000])
def test_deep_arguments_are_no_arguments(depth):
    deep = '{"a": ' * depth + "1" + "}" * depth
    for text in (
        f'<tool_call>{{"arguments": {deep}, "name": "f"}}</tool_call>',
        f'<tool_call>{{"name": "f", "arguments": {deep}}}</tool_call>',
    ):
        assert read(text, [], "hermes", whole=True) == Answer(text, ())
    (call,) = read(f"<tool_call>f<arg_key>a</arg_key><arg_value>{deep}</arg_value></tool_call>", [], "glm").tool_calls
    assert json.loads(call.arguments) == {"a": deep}


def test_a_good_call_after_a_broken_one_is_found():
    broken = '<tool_call>{"name": "f", "arguments": {"a: 1}}</tool_call>'
    answer = read(broken + '<tool_call>{"name": "f", "arguments": {}}</tool_call>', [], "hermes", whole=True)
    assert answer == Answer(broken, (ToolCall("", "f", "{}"),))


def test_rereading_has_an_end():
    text = '<tool_call>{"name": "f", "arguments": {</tool_call>' * 3000 + '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(text, [], "hermes", whole=True) == Answer(text, ())


def test_an_answer_that_is_cut_off_in_a_call_keeps_its_reason():
    stream = ToolCallStream(BY_NAME["hermes"], FUNCTIONS)
    stream.push('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><tool_call>{"name": "f", "arguments": {"a')
    stream.finish()
    assert (stream.num_calls, stream.finish_reason("length")) == (2, "length")
    stream = ToolCallStream(BY_NAME["hermes"], FUNCTIONS)
    stream.push("text")
    assert stream.finish() == [] and stream.finish_reason("stop") == "stop"


@pytest.mark.parametrize("text", ["", " ", " \n a \n", "plain {text} [TOOL_CALLS]", '{"name": "f", "parameters": {}}'])
def test_without_tools_text_stays_as_it_is(text):
    assert read(text, [1, 3], "none") == Answer(text, ())
    assert ToolCallStream(None, {}).push("a\n") == [ContentDelta("a\n")]


def test_a_json_answer_is_no_call_of_llama():
    assert read('{"answer": [1]}', [4], "llama3") == Answer('{"answer": [1]}', ())


def test_one_call_ends_the_answer_if_only_one_is_allowed():
    text = WRITERS["hermes"]([("f", {"a": 1}), ("f", {})]) + " and more"
    for options in ({}, {"whole": True}):
        assert decoded(read(text, [30, 70], "hermes", parallel=False, **options)) == [("f", {"a": 1})]
    stream = ToolCallStream(BY_NAME["hermes"], FUNCTIONS, parallel=False)
    stream.push(text[:45])
    assert not stream.done
    stream.push(text[45:])
    assert stream.done


def test_special_tokens_are_left_out_of_content_alone():
    text = 'Hi<|eot|> there <tool_call>{"name": "f", "arguments": {"a": "<|eot|>"}}</tool_call><|eot|>'
    answer = read(text, [3, 60], "hermes", special_tokens=("<|eot|>", "<tool_call>", "</tool_call>"))
    assert answer == Answer("Hi there", (ToolCall("", "f", '{"a": "<|eot|>"}'),))


@settings(max_examples=25, deadline=None)
@given(calls=calls_of_chats, at=cuts, name=st.sampled_from(NAMES))
def test_forced_answers(calls, at, name):
    for whole in (False, True):
        text = dump_all(calls, "parameters")
        stream = ToolCallStream(REQUIRED, FUNCTIONS, whole=whole)
        assert decoded(gather(stream.push(text[:9]) + stream.push(text[9:]) + stream.finish())) == calls
        arguments = json.dumps(calls[0][1])
        stream = ToolCallStream(NAMED, FUNCTIONS, parallel=False, whole=whole, name=name)
        deltas = stream.push(arguments[: at[0] if at else 1]) + stream.push(arguments[at[0] if at else 1 :]) + stream.finish()
        assert gather(deltas) == Answer(None, (ToolCall("", name, arguments),))
        assert stream.finish_reason("stop") == "tool_calls"


def test_messages_have_openais_shape():
    answer = parse_answer(ToolCallStream(BY_NAME["hermes"], FUNCTIONS, whole=True), WRITERS["hermes"]([("f", {"a": 1})]))
    message = ChatCompletionMessage.model_validate(answer.as_openai(), strict=True)
    assert message.content is None and message.tool_calls[0].function.arguments == '{"a": 1}'
    assert re.fullmatch("call_[0-9a-f]{24}", message.tool_calls[0].id)
    assert answer.finish_reason("stop") == "tool_calls" and Answer("x", ()).finish_reason("length") == "length"
    assert "tool_calls" not in Answer("x", ()).as_openai() and ContentDelta("x").as_openai() == {"content": "x"}
