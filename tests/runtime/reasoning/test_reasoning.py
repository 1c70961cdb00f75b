"""Thinking is told from the answer wherever the text is cut, by markers that templates of published models show."""

from __future__ import annotations

import random

import pytest

from cupola.runtime.reasoning.formats import find_format, goes_on_thinking, starts_thinking
from cupola.runtime.reasoning.stream import AnswerStream, ReasoningSplitter, split_answer
from cupola.runtime.reasoning.structure import after_thinking
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from cupola.runtime.tool_calls.calls import ContentDelta, ReasoningDelta
from cupola.runtime.tool_calls.formats import HERMES
from cupola.runtime.tool_calls.stream import ToolCallStream

THINK = find_format("{{ '<think>' }}")
FORMATS = [  # a line of a published template, and how its model writes
    ("{% if '</think>' in content %}", "<think>\n{0}\n</think>\n\n{1}"),  # Qwen 3, DeepSeek R1
    ("{{ '[THINK]' + block['thinking'] + '[/THINK]' }}", "[THINK]{0}[/THINK]{1}"),  # Magistral
    ("{{ '<seed:think>' }}", "<seed:think>{0}</seed:think>{1}"),
    ("<|START_THINKING|>", "<|START_THINKING|>{0}<|END_THINKING|><|START_RESPONSE|>{1}<|END_RESPONSE|>"),
    ("Write Here is my thought process: and so on", "Here is my thought process: {0}\n\nHere is my response: {1}"),
    ("<think>{{ x }}</think><answer>", "<think>\n{0}\n</think>\n<answer>\n{1}</answer>"),
    ("[BEGIN FINAL RESPONSE]", "Here are my reasoning steps:\n{0}\n[BEGIN FINAL RESPONSE]\n{1}[END FINAL RESPONSE]"),
]


def read(format, text, *, thinks=False, cuts=None, tools=None, shown=True):
    """Thinking and content of a streamed answer in pieces of the given sizes; the whole answer must agree."""
    stream = AnswerStream(ReasoningSplitter(format, thinks=thinks), tools or ToolCallStream(None, {}), shown=shown)
    deltas, rest, sizes = [], text, iter(cuts or [len(text)])
    while rest:
        size = next(sizes, 1)
        deltas += stream.push(rest[:size])
        rest = rest[size:]
    deltas += stream.finish()
    thinking = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    content = "".join(delta.content for delta in deltas if isinstance(delta, ContentDelta))
    if tools is None:
        answer = split_answer(ReasoningSplitter(format, thinks=thinks), ToolCallStream(None, {}, whole=True), text, shown=shown)
        assert (answer.reasoning or "", answer.content or "") == (thinking, content)
    return thinking, content


@pytest.mark.parametrize(("template", "written"), FORMATS)
def test_every_format_wherever_it_is_cut(template, written):
    format, rng = find_format(template), random.Random(0)
    text = written.format("So 2 < 3,\n\nand [so] on.", "It is </b> less.\n")
    for _ in range(40):
        cuts = [rng.randint(1, 9) for _ in text]
        assert read(format, text, cuts=cuts) == ("So 2 < 3,\n\nand [so] on.", "It is </b> less.\n")
    opened = text[len(next(begin for begin in format.begins if text.startswith(begin))) :]
    assert read(format, opened, thinks=True, cuts=[1] * len(text))[0] == "So 2 < 3,\n\nand [so] on."


def test_what_does_not_think_is_left_alone():
    for text in ("  hello\n", "<thin", "a <think>b</think> c", " <thinking>", ""):
        assert read(THINK, text, cuts=[1] * len(text)) == ("", text)
        assert read(None, text) == ("", text)
    assert find_format("{{ messages[0].content }}") is None
    assert find_format("", {"</think>"}) is THINK


def test_thinking_that_never_ends_is_thinking():
    assert read(THINK, "<think>so </thi", cuts=[3] * 9) == ("so </thi", "")
    assert read(THINK, "<think>\n\n</think>\n\nhi") == ("", "hi")
    assert read(THINK, "<think>secret</think>hi", shown=False) == ("", "hi")


def test_special_tokens_are_no_part_of_the_thinking():
    splitter = ReasoningSplitter(THINK, thinks=True, special_tokens=("<|x|>", "</think>"))
    assert splitter.push("a<|x|>b</think>c", is_last=True) == [(True, "a"), (True, "b"), (False, "c")]


def test_calls_begin_after_the_thinking():
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    text = f"<think>Perhaps {call}?</think>\n{call}"
    tools = ToolCallStream(HERMES, {"f": {}})
    assert read(THINK, text, cuts=[5] * 50, tools=tools)[1] == ""
    assert tools.num_calls == 1 and tools.finish_reason("stop") == "tool_calls"


def test_prompts_that_open_the_thinking():
    assert starts_thinking(THINK, "<|im_start|>assistant\n<think>\n")
    assert not starts_thinking(THINK, "<think>\n\n</think>\n\n") and not starts_thinking(None, "<think>")
    assert goes_on_thinking(THINK, "<think>I w") and not goes_on_thinking(THINK, "<think>a</think>b") and not goes_on_thinking(THINK, "a")


def test_without_structure_or_budget_there_is_no_grammar():
    assert after_thinking(None, THINK, thinks=True) is None
    assert after_thinking(StructuredOutputs(regex="a"), THINK, thinks=False).source()[0] == "structural_tag"
