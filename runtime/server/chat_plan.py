"""From a chat request to the model's prompt, and from what the model says back to thinking, content and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cupola.runtime.errors import RequestError
from cupola.runtime.reasoning.formats import ReasoningFormat, find_format, goes_on_thinking, starts_thinking
from cupola.runtime.reasoning.stream import AnswerStream, ReasoningSplitter, split_answer
from cupola.runtime.reasoning.structure import after_thinking
from cupola.runtime.server.protocol import ChatPrompt, Object
from cupola.runtime.server.service import Service
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from cupola.runtime.tool_calls.calls import Answer
from cupola.runtime.tool_calls.formats import variables_of
from cupola.runtime.tool_calls.plan import ToolPlan, plan_chat

FIXED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
SWITCHES = ("enable_thinking", "thinking")  # what templates call the variable that turns thinking on and off


@dataclass(frozen=True)
class ChatPlan:
    """How to ask the model, and how to read what it answers.

    Args:
        template: the name of the chat template.
        tools: the messages as the template takes them, and the calls that may come.
        reasoning: how the model marks its thinking; None if it is not known to think.
        variables: what the template gets beside messages, tools and documents.
    """

    template: str
    tools: ToolPlan
    reasoning: ReasoningFormat | None
    variables: Mapping[str, object]

    async def render(self, service: Service, body: ChatPrompt) -> str:
        """The prompt, the last message left open if it is to be continued. Raises RequestError, ServerError."""
        if body.continue_final_message and body.add_generation_prompt and "add_generation_prompt" in body.model_fields_set:
            raise RequestError("contradicts add_generation_prompt", field="continue_final_message", fix="set one of the two to false")
        return await service.render(
            self.tools.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            tools=self.tools.tools,
            documents=body.documents,
            name=self.template,
            variables=self.variables,
        )

    def thinks(self, prompt: str, body: ChatPrompt) -> bool:
        """True if the answer to the rendered `prompt` begins within the model's thinking."""
        if body.continue_final_message:
            return goes_on_thinking(self.reasoning, str(self.tools.messages[-1].get("content") or ""))
        return starts_thinking(self.reasoning, prompt)

    def check_budget(self, budget: int | None) -> None:
        """Raises RequestError if there is a budget for thinking and the model is not known to think."""
        if budget is not None and self.reasoning is None:
            problem = f"is {budget}, and neither the model's template nor its tokenizer shows how it marks its thinking"
            raise RequestError(problem, field="thinking_token_budget", fix="leave it out")

    def after_thinking(self, structured: StructuredOutputs | None, *, thinks: bool, budget: int | None) -> StructuredOutputs | None:
        """The form of a whole answer, of which `structured` is what comes after the thinking."""
        return structured if self.reasoning is None else after_thinking(structured, self.reasoning, thinks=thinks, budget=budget)

    def without_thinking(self, text: str, *, thinks: bool) -> str:
        """A whole answer's text behind its thinking."""
        return "".join(piece for is_thinking, piece in self._splitter(thinks).push(text, is_last=True) if not is_thinking)

    def open_stream(self, *, thinks: bool, shown: bool) -> AnswerStream:
        """Reads one streamed answer; each of a request's choices has its own."""
        return AnswerStream(self._splitter(thinks), self.tools.open_stream(), shown=shown)

    def parse(self, text: str, *, thinks: bool, shown: bool) -> Answer:
        """Reads one whole answer."""
        return split_answer(self._splitter(thinks), self.tools.open_stream(whole=True), text, shown=shown)

    def _splitter(self, thinks: bool) -> ReasoningSplitter:
        return ReasoningSplitter(self.reasoning, thinks=thinks, special_tokens=self.tools.special_tokens)


def plan_prompt(service: Service, body: ChatPrompt, messages: Sequence[Object]) -> ChatPlan:
    """Checks a chat's fields. Raises RequestError naming the field and the fix."""
    template = service.need_chat_template()
    name = template.choose(has_tools=bool(body.tools) and body.tool_choice != "none", name=body.chat_template)
    text = template.text(name)
    reasoning = find_format(text, service.added_tokens)
    tools = plan_chat(
        text,
        messages,
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls,
        special_tokens=service.special_tokens,
        markers=reasoning.markers if reasoning else (),
    )
    if body.documents and "documents" not in variables_of(text):
        raise RequestError("are not shown by the model's template", field="documents", fix="put them into a message")
    return ChatPlan(name, tools, reasoning, _variables(body))


def _variables(body: ChatPrompt) -> dict[str, object]:
    """Variables of the template: those that are given, and what a reasoning effort says of them."""
    given = dict(body.chat_template_kwargs or {})
    if fixed := next((name for name in FIXED if name in given), None):
        raise RequestError(f"has {fixed!r}", field="chat_template_kwargs", fix=f"give {fixed} as a field of the request")
    if body.enable_thinking is not None:
        given = {**dict.fromkeys(SWITCHES, body.enable_thinking), **given}
    if body.reasoning_effort is not None:
        switches = dict.fromkeys(SWITCHES, body.reasoning_effort != "none")
        given = {**switches, "reasoning_effort": body.reasoning_effort, **given}
    return given
