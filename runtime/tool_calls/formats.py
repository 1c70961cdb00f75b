"""The formats in which models write tool calls: a table, and the choice from it by what a chat template says."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

NAME = r"[a-zA-Z0-9_-]{1,64}"  # as OpenAI restricts it


@dataclass(frozen=True)
class Markup:
    """Arguments that are no JSON, but an element each.

    Args:
        begin: what stands before a value; its one group is the argument's name.
        end: what stands after it.
        last: what stands after all of them, if anything.
    """

    begin: re.Pattern[str]
    end: str
    last: str = ""


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes its calls.

    Every format may hold `{"name": …, "arguments": {…}}` (or "parameters"), or a list of those, between its markers.

    Args:
        name: for humans.
        signs: a template that contains one of these speaks the format.
        begins: markers before a call or a list of calls.
        ends: markers after it. Without any, calls follow each other up to other text.
        head: for calls that are not objects: what stands between a beginning and the arguments; its one group that takes part in
            the match is the function's name.
        markup: how the arguments after `head` are written; None if they are JSON.
        opens: characters that begin a call without a marker, as the first of the answer.
        frames: markers around all calls, which say nothing.
        written: what to write around a call's arguments, with NAME for the function's; None if templates write calls themselves, and
            grammars don't wait for them.
        id_length: letters and digits that templates demand of a call's id.
        without_content: whether templates take calls only from messages whose content is none.
    """

    name: str
    signs: tuple[str, ...]
    begins: tuple[str, ...]
    ends: tuple[str, ...] = ()
    head: re.Pattern[str] | None = None
    markup: Markup | None = None
    opens: str = ""
    frames: tuple[str, ...] = ()
    written: tuple[str, str] | None = None
    id_length: int | None = None
    without_content: bool = False


HERMES = ToolFormat(  # Hermes 2 and 3, Qwen 2.5 and 3, SmolLM3, Granite 4
    name="hermes",
    signs=("<tool_call>",),
    begins=("<tool_call>",),
    ends=("</tool_call>",),
    written=('<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>"),
)

INSTRUCTED = replace(HERMES, name="instructed", opens="{[")  # who was only told of the tags may leave them out

_ELEMENTS = Markup(re.compile(r"<parameter=([^<>\n]{1,128})>"), "</parameter>", "</function>")

FORMATS = (  # the first whose sign is found
    ToolFormat(
        name="seed",
        signs=("<seed:tool_call>",),
        begins=("<seed:tool_call>",),
        ends=("</seed:tool_call>",),
        head=re.compile(rf"<function=({NAME})>"),
        markup=_ELEMENTS,
    ),
    ToolFormat(  # Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5
        name="qwen_xml",
        signs=("<parameter=",),
        begins=("<tool_call>",),
        ends=("</tool_call>",),
        head=re.compile(rf"<function=({NAME})>"),
        markup=_ELEMENTS,
    ),
    ToolFormat(  # 4.5 to 5
        name="glm",
        signs=("<arg_key>",),
        begins=("<tool_call>",),
        ends=("</tool_call>",),
        head=re.compile(rf"({NAME})\s{{0,8}}(?=<)"),
        markup=Markup(re.compile(r"<arg_key>([^<>\n]{1,128})</arg_key>\s{0,8}<arg_value>"), "</arg_value>"),
    ),
    ToolFormat(  # V3 has a "function" and a fenced block, V3.1 has neither
        name="deepseek",
        signs=("<｜tool▁call▁begin｜>",),
        begins=("<｜tool▁call▁begin｜>",),
        ends=("```<｜tool▁call▁end｜>", "<｜tool▁call▁end｜>"),
        head=re.compile(rf"(?:function<｜tool▁sep｜>({NAME})\s*```json\s*|({NAME})<｜tool▁sep｜>\s*)(?=\{{)"),
        frames=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        without_content=True,
    ),
    ToolFormat(  # K2
        name="kimi",
        signs=("<|tool_call_begin|>",),
        begins=("<|tool_call_begin|>",),
        ends=("<|tool_call_end|>",),
        head=re.compile(rf"(?:functions\.)?({NAME})(?::\d{{1,6}})?\s*<\|tool_call_argument_begin\|>\s*(?=\{{)"),
        frames=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    ToolFormat(  # a list of objects up to tokenizer v7, then name and arguments
        name="mistral",
        signs=("[TOOL_CALLS]",),
        begins=("[TOOL_CALLS]",),
        head=re.compile(rf"({NAME})(?:\[CALL_ID\][a-zA-Z0-9]{{1,64}})?(?:\[ARGS\])?\s*(?=\{{)"),
        id_length=9,
    ),
    ToolFormat(  # Granite 3, Phi-4-mini
        name="tool_call_token",
        signs=("<|tool_call|>",),
        begins=("<|tool_call|>",),
        ends=("<|/tool_call|>",),
        written=('<|tool_call|>[{"name": "NAME", "arguments": ', "}]"),
    ),
    ToolFormat(name="apriel", signs=("<tool_calls>[",), begins=("<tool_calls>",), ends=("</tool_calls>",)),
    ToolFormat(  # Command R7B and A
        name="cohere",
        signs=("<|START_ACTION|>",),
        begins=("<|START_ACTION|>",),
        ends=("<|END_ACTION|>",),
    ),
    HERMES,
    ToolFormat(  # v3.1
        name="functionary",
        signs=("</function>",),
        begins=("<function=",),
        ends=("</function>",),
        head=re.compile(rf"({NAME})>\s*(?=\{{)"),
    ),
    ToolFormat(  # 3.1 to 3.3: the bare object, or after a tag
        name="llama3",
        signs=("<|python_tag|>", '"parameters": dictionary of argument name'),
        begins=("<|python_tag|>",),
        opens="{",
    ),
)

REQUIRED = ToolFormat(name="required", signs=(), begins=(), opens="[")  # what `forcing` asks for
NAMED = ToolFormat(name="named", signs=(), begins=(), opens="{")


@dataclass(frozen=True)
class TemplateTraits:
    """The abilities of a chat template, judged by its text.

    Args:
        format: in what the model writes its calls.
        lists_tools: whether the template writes `tools` into the prompt, and in a format that the table has. Otherwise
            all is put into words for it, and the two below are False.
        shows_calls: whether it writes an assistant's earlier `tool_calls`.
        shows_results: whether it takes messages of the role "tool".
        shows_one_call: whether it refuses an assistant's message with several calls.
        takes_system: whether it takes a system message.
        takes_developer: whether it knows the role "developer".
    """

    format: ToolFormat
    lists_tools: bool
    shows_calls: bool
    shows_results: bool
    shows_one_call: bool
    takes_system: bool
    takes_developer: bool


@lru_cache(maxsize=8)
def read_template(text: str) -> TemplateTraits:
    """The template's traits. Nothing is rendered: a template may be hostile, so this takes linear time."""
    found = next((entry for entry in FORMATS if any(sign in text for sign in entry.signs)), None)
    lists_tools = found is not None and "tools" in variables_of(text)
    return TemplateTraits(
        format=found if found is not None and lists_tools else INSTRUCTED,
        lists_tools=lists_tools,
        shows_calls=lists_tools and "tool_calls" in text,
        shows_results=lists_tools and any(role in text for role in ("'tool'", '"tool"', "'ipython'", '"ipython"')),
        shows_one_call="only supports single tool-calls" in text,
        takes_system=re.search(r"[Ss]ystem (?:role|messages?) (?:is |are )?not supported", text) is None,
        takes_developer="developer" in text,
    )


@lru_cache(maxsize=8)
def variables_of(text: str) -> frozenset[str]:
    """The words in the template's code, its strings left out."""
    words: set[str] = set()
    for part in re.split(r"\{[%{]", text)[1:]:
        code = re.split(r"[%}]\}", part, maxsplit=1)[0]
        words.update(re.findall(r"(?<![\w.])\w+", re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "", code)))
    return frozenset(words)
