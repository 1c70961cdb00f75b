"""The fields of `POST /v1/responses`, and the chat request that is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from cupola.runtime.errors import RequestError
from cupola.runtime.server.protocol import Body, ChatRequest, Integer, Object, Strings
from cupola.runtime.server.translations.fields import Translated, make_chat_request

MAX_METADATA, MAX_KEY_CHARACTERS, MAX_VALUE_CHARACTERS = 16, 64, 512
LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (  # what else there is concerns hosted tools, of which there are none
    LOGPROBS, "reasoning.encrypted_content", "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
)  # fmt: skip
# How the fields of a chat request are called here.
NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format.schema",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "structured_outputs.json": "text.format.schema",
    "prompt": "input",
}


class Format(Body):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: Object | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """`text`."""

    format: Format | None = None
    verbosity: str | None = None


class Reasoning(Body):
    """`reasoning`. The model's own words come as they are: there is no summary to be more or less detailed."""

    effort: str | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class ResponseStreamOptions(Body):
    """`stream_options`; nothing is obfuscated."""

    include_obfuscation: bool = False


class InputRequest(Translated):
    """The fields that make the prompt: all that `POST /v1/responses/input_tokens` takes."""

    model: str | None = None
    input: str | Annotated[list[Object], Field(fail_fast=True)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Annotated[list[Object], Field(fail_fast=True)] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool = True
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] = "disabled"


class ResponseRequest(InputRequest):
    """`POST /v1/responses`."""

    max_output_tokens: Integer | None = Field(None, ge=1)
    include: Strings | None = None
    top_logprobs: Integer | None = Field(None, ge=0)
    store: bool = True
    metadata: dict[str, str] | None = None
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def check(self) -> None:
        """Raises RequestError for what contradicts itself or is not known."""
        if self.stream_options is not None and not self.stream:
            raise RequestError("is given without stream", field="stream_options", fix="set stream to true, or leave it out")
        for i, wanted in enumerate(self.include or ()):
            if wanted not in INCLUDABLE:
                raise RequestError(f"is {wanted!r:.60}", field=f"include[{i}]", fix=f"give one of {', '.join(INCLUDABLE)}")
        for key, value in (self.metadata or {}).items():
            if len(key) > MAX_KEY_CHARACTERS or len(value) > MAX_VALUE_CHARACTERS:
                fix = f"give keys of at most {MAX_KEY_CHARACTERS} characters, and values of {MAX_VALUE_CHARACTERS}"
                raise RequestError(f"has the entry {key!r:.80}, which is too long", field="metadata", fix=fix)
        if len(self.metadata or {}) > MAX_METADATA:
            raise RequestError(f"has {len(self.metadata or {})} entries", field="metadata", fix=f"give at most {MAX_METADATA}")


def chat_request(body: InputRequest, messages: Sequence[Object]) -> ChatRequest:
    """The chat request of a body, whose items are `messages` already. Raises RequestError, RequestValidationError."""
    format = body.text.format if body.text else None
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())]
    choice, tools = _choice(body.tool_choice, tools)
    if choice not in (None, "auto", "none"):
        format = None  # of the text, which an answer has not whose calls are forced
    fields: Object = {
        **body.passed,
        "model": body.model,
        "messages": list(messages),
        "response_format": _response_format(format) if format else None,
        "verbosity": body.text.verbosity if body.text else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning else body.passed.get("reasoning_effort"),
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    if isinstance(body, ResponseRequest):
        wants_logprobs = bool(body.top_logprobs) or LOGPROBS in (body.include or ())
        fields |= {
            "max_completion_tokens": body.max_output_tokens,
            "stream": body.stream,
            "logprobs": wants_logprobs,
            "top_logprobs": (body.top_logprobs or 0) if wants_logprobs else None,
        }
    return make_chat_request(fields)


def _response_format(format: Format) -> Object:
    if format.type != "json_schema":
        return {"type": format.type}
    if format.json_schema is None:
        raise RequestError("is missing", field="text.format.schema", fix="give a JSON schema")
    # A response has no place to say that it breaks its schema.
    return {"type": "json_schema", "json_schema": {"name": format.name, "schema": format.json_schema, "strict": True}}


def _tool(tool: Object, field: str) -> Object:
    """A function as chat completions have it."""
    if tool.get("type") != "function":
        problem = f"is {tool.get('type')!r:.60}, which runs on OpenAI's servers or is no function"
        raise RequestError(problem, field=f"{field}.type", fix="give functions, and run the tool yourself")
    given = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": given}


def _choice(choice: str | Object | None, tools: list[Object]) -> tuple[str | Object | None, list[Object]]:
    """The choice as chat completions have it, and the tools that it leaves."""
    if not isinstance(choice, dict):
        return choice, tools
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}, tools
    mode, allowed = choice.get("mode"), choice.get("tools")
    if choice.get("type") != "allowed_tools" or mode not in ("auto", "required") or not isinstance(allowed, list):
        fix = (
            'give "auto", "none", "required", {"type": "function", "name": "…"} or {"type": "allowed_tools", "mode": "auto", "tools": […]}'
        )
        raise RequestError(f"is {choice!r:.80}", field="tool_choice", fix=fix)
    known = {tool["function"].get("name"): tool for tool in tools}
    for i, tool in enumerate(allowed):
        if not isinstance(tool, dict) or tool.get("type") != "function" or tool.get("name") not in known:
            raise RequestError(f"is {tool!r:.60}, which is none of the tools", field=f"tool_choice.tools[{i}]", fix="name one of the tools")
    names = {tool["name"] for tool in allowed}
    return mode, [tool for tool in tools if tool["function"].get("name") in names]
