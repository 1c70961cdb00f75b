"""A chat request with tools, from its fields to the prompt's variables, and from the model's text back to tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cupola.runtime.errors import RequestError
from cupola.runtime.tool_calls.calls import Answer
from cupola.runtime.tool_calls.checks import Tool, ToolChoice, check_tool_choice, check_tools
from cupola.runtime.tool_calls.conversation import Message, check_messages, fit_to_template
from cupola.runtime.tool_calls.forcing import Constraint, constraint_for
from cupola.runtime.tool_calls.formats import NAMED, REQUIRED, ToolFormat, read_template
from cupola.runtime.tool_calls.stream import ToolCallStream, parse_answer


@dataclass(frozen=True)
class ToolPlan:
    """How to ask the model, and how to read what it answers.

    Args:
        messages: for `ChatTemplate.render`.
        tools: its `tools`; None if the template is not to see any.
        constraint: arguments of `StructuredOutputs` by their names, "json" or "structural_tag" among them; None if anything may be said.
        skip_special_tokens: whether decoding may skip them: not where they mark calls.
        choice: what the request asked for.
        parallel: whether an answer may hold several calls.
        functions: those that may be called, with the JSON schemas of their arguments.
        format: how calls are written; None if there can be none.
        special_tokens: what the stream then leaves out of the content.
    """

    messages: list[Message]
    tools: list[Message] | None
    constraint: Constraint | None
    skip_special_tokens: bool
    choice: ToolChoice
    parallel: bool
    functions: Mapping[str, Mapping[str, object]]
    format: ToolFormat | None
    special_tokens: tuple[str, ...]

    def open_stream(self, *, whole: bool = False) -> ToolCallStream:
        """Reads one streamed answer; each of a request's choices has its own.

        With `whole`, a call that is not complete is content, unless it had to be a call: what there is of it then is one.
        """
        whole = whole and self.choice.mode not in ("named", "required")
        return ToolCallStream(
            self.format, self.functions, parallel=self.parallel, whole=whole, name=self.choice.name, special_tokens=self.special_tokens
        )

    def parse(self, text: str) -> Answer:
        """Reads one whole answer. A call that is not complete, or has broken arguments, is content, unless it had to be one."""
        return parse_answer(self.open_stream(whole=True), text)


def plan_chat(
    template: str,
    messages: object,
    *,
    tools: object = None,
    tool_choice: object = None,
    parallel_tool_calls: object = None,
    special_tokens: Sequence[str] = (),
    markers: Sequence[str] = (),
) -> ToolPlan:
    """Checks a chat request's fields, which may come straight from JSON, and says how to go on. Chats without tools go through it too.

    Args:
        template: the chat template's text.
        messages, tools, tool_choice, parallel_tool_calls: as OpenAI's chat completions define them.
        special_tokens: the texts of the tokenizer's special tokens. Where some of them mark calls, decoding may not skip any, and the
            stream leaves them out of the content instead.
        markers: further markers that may be among those tokens and must be seen, such as those of reasoning.

    Raises:
        RequestError: naming the field and the fix.
    """
    checked = check_messages(messages)
    given = check_tools(tools)
    choice = check_tool_choice(tool_choice, given)
    if not isinstance(parallel_tool_calls, bool | None):
        raise RequestError(f"is {parallel_tool_calls!r:.60}", field="parallel_tool_calls", fix="give true or false")
    parallel = parallel_tool_calls is not False and choice.mode != "named"
    shown: Sequence[Tool] = () if choice.mode == "none" else given
    traits = read_template(template)
    format = {"auto": traits.format, "required": REQUIRED, "named": NAMED, "none": None}[choice.mode]
    marked = format is not None and any(marker in special_tokens for marker in format.begins)
    seen = marked or any(marker in special_tokens for marker in markers)
    return ToolPlan(
        messages=fit_to_template(checked, shown, traits),
        tools=[dict(tool.spec) for tool in shown] if shown and traits.lists_tools else None,
        constraint=constraint_for(shown, choice, parallel, traits.format, can_wait=not marked),
        skip_special_tokens=not seen,
        choice=choice,
        parallel=parallel,
        functions={tool.name: tool.parameters for tool in shown},
        format=format,
        special_tokens=tuple(special_tokens) if seen else (),
    )
