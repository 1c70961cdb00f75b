"""The fields of `POST /v1/messages`, and the chat request that is made of them. Source: Anthropic's reference of the Messages API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from cupola.runtime.errors import RequestError
from cupola.runtime.server.protocol import Body, ChatRequest, Integer, Object, Strings
from cupola.runtime.server.translations.fields import Translated, make_chat_request

# How the fields of a chat request are called here.
NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format.schema",
    "structured_outputs.json": "output_config.format.schema",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
    "continue_final_message": "messages",
    "prompt": "messages",
}


class Thinking(Body):
    """`thinking`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Integer | None = Field(None, ge=1)
    display: Literal["summarized"] | None = Field(None, description="Thoughts come as they are.")


class OutputFormat(Body):
    """The form of the text."""

    type: Literal["json_schema"]
    json_schema: Object = Field(alias="schema")


class OutputConfig(Body):
    """`output_config`."""

    format: OutputFormat | None = None
    effort: str | None = None


class Choice(Body):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class PromptRequest(Translated):
    """The fields that make the prompt: all that `POST /v1/messages/count_tokens` takes."""

    model: str | None = None
    messages: Annotated[list[Object], Field(fail_fast=True)]
    system: str | Annotated[list[Object], Field(fail_fast=True)] | None = None
    tools: Annotated[list[Object], Field(fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # what the format was called before


class MessageRequest(PromptRequest):
    """`POST /v1/messages`."""

    max_tokens: Integer = Field(ge=1)
    stop_sequences: Strings | None = None
    stream: bool = False


def chat_request(body: PromptRequest, messages: list[Object]) -> ChatRequest:
    """The chat request of a body, whose messages are a chat's already. Raises RequestError, RequestValidationError."""
    choice = body.tool_choice or Choice(type="auto")
    format = (body.output_config and body.output_config.format) or body.output_format
    continues = messages[-1]["role"] == "assistant"
    fields: Object = {
        **body.passed,
        **_thinking(body),
        "model": body.model,
        "messages": messages,
        "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())] or None,
        "tool_choice": _tool_choice(choice) if body.tool_choice else None,
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
        "response_format": {"type": "json_schema", "json_schema": {"schema": format.json_schema, "strict": True}} if format else None,
        "add_generation_prompt": not continues,
        "continue_final_message": continues,
    }
    if body.output_config and body.output_config.effort:
        fields["reasoning_effort"] = body.output_config.effort
    if isinstance(body, MessageRequest):
        fields |= {"max_completion_tokens": body.max_tokens, "stop": body.stop_sequences, "stream": body.stream}
    return make_chat_request(fields)


def _thinking(body: PromptRequest) -> Object:
    """The fields of a chat request for it: a switch, and a budget. An adaptive model thinks as it likes."""
    thinking = body.thinking
    if thinking is None or thinking.type == "adaptive":
        return {}
    return {"enable_thinking": thinking.type == "enabled", "thinking_token_budget": thinking.budget_tokens}


def _tool(tool: Object, field: str) -> Object:
    """A tool as chat completions have it."""
    kind = tool.get("type") or "custom"
    if kind != "custom":
        problem = f"is {kind!r:.60}, whose schema or work is Anthropic's"
        raise RequestError(problem, field=f"{field}.type", fix="give tools with a name and an input_schema, and run them yourself")
    if not isinstance(tool.get("input_schema"), dict):
        raise RequestError(f"is {tool.get('input_schema')!r:.60}", field=f"{field}.input_schema", fix="give a JSON schema of an object")
    given = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**given, "parameters": tool["input_schema"]}}


def _tool_choice(choice: Choice) -> str | Object:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]
