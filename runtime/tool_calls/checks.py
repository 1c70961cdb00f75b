"""Checks `tools` and `tool_choice` of a chat request. Source: the reference of OpenAI's chat completions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cupola.runtime.errors import RequestError
from cupola.runtime.tool_calls.calls import MAX_DEPTH, is_deeper
from cupola.runtime.tool_calls.formats import NAME

MAX_TOOLS = 128
MAX_TOOL_BYTES, MAX_TOTAL_BYTES = 64 * 1024, 192 * 1024
NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}
_NAME = re.compile(NAME)


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Args:
        name: what the model calls it.
        parameters: the JSON schema of its arguments, an object.
        strict: whether calls must keep to that schema.
        spec: the entry of `tools` as it came, for the prompt.
        num_bytes: of its JSON.
    """

    name: str
    parameters: Mapping[str, object]
    strict: bool
    spec: Mapping[str, object]
    num_bytes: int


@dataclass(frozen=True)
class ToolChoice:
    """The choice of tools: as the model likes, none, at least one, or the one called `name`."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


def check_tools(tools: object) -> tuple[Tool, ...]:
    """The tools of a request; none if it has none.

    Raises:
        RequestError: naming the field and the fix.
    """
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple):
        raise RequestError(f"is {tools!r:.60}", field="tools", fix="give a list of functions")
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"has {len(tools)} entries", field="tools", fix=f"give at most {MAX_TOOLS}")
    checked = tuple(_check_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools))
    total = sum(tool.num_bytes for tool in checked)
    if total > MAX_TOTAL_BYTES:
        raise RequestError(f"has {total} bytes", field="tools", fix=f"give at most {MAX_TOTAL_BYTES}")
    first: dict[str, int] = {}
    for i, tool in enumerate(checked):
        if first.setdefault(tool.name, i) != i:
            field = f"tools[{i}].function.name"
            raise RequestError(
                f"is {tool.name!r}, as that of tools[{first[tool.name]}]", field=field, fix="give each function its own name"
            )
    return checked


def _check_tool(tool: object, field: str) -> Tool:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        fix = 'give {"type": "function", "function": {"name": "…", "parameters": {…}}}'
        raise RequestError(f"is {tool!r:.60}", field=field, fix=fix)
    function, field = tool["function"], f"{field}.function"
    name = check_name(function.get("name"), f"{field}.name")
    if not isinstance(function.get("description"), str | None):
        raise RequestError(f"is {function['description']!r:.60}", field=f"{field}.description", fix="give a string")
    if not isinstance(function.get("strict"), bool | None):
        raise RequestError(f"is {function['strict']!r:.60}", field=f"{field}.strict", fix="give true or false")
    size = _check_size(tool, field)
    parameters = _check_parameters(function.get("parameters"), f"{field}.parameters")
    return Tool(name, parameters, bool(function.get("strict")), tool, size)


def check_name(name: object, field: str) -> str:
    """The name of a function, if it is one. Raises RequestError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"is {name!r:.80}", field=field, fix="give 1 to 64 letters, digits, underscores and dashes")
    return name


def _check_size(tool: object, field: str) -> int:
    if is_deeper(tool, MAX_DEPTH):
        raise RequestError(f"is nested more than {MAX_DEPTH} levels deep", field=field, fix="give a flatter schema")
    try:
        size = len(json.dumps(tool, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RequestError(f"can't be written as JSON: {error}", field=field, fix="give plain JSON") from None
    if size > MAX_TOOL_BYTES:
        raise RequestError(f"has {size} bytes", field=field, fix=f"give at most {MAX_TOOL_BYTES}")
    return size


def _check_parameters(parameters: object, field: str) -> Mapping[str, object]:
    if parameters is None or parameters == {}:
        return NO_PARAMETERS
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise RequestError(f"is {parameters!r:.60}", field=field, fix='give a JSON schema with "type": "object"')
    if not isinstance(parameters.get("properties", {}), Mapping):
        raise RequestError(f"is {parameters['properties']!r:.60}", field=f"{field}.properties", fix="give a schema for each name")
    return parameters


def check_tool_choice(choice: object, tools: Sequence[Tool]) -> ToolChoice:
    """The request's `tool_choice`; without any, "auto" if there are tools.

    Raises:
        RequestError: naming the field and the fix.
    """
    if choice is None:
        choice = "auto"
    if choice in ("auto", "none"):
        return ToolChoice("auto" if choice == "auto" and tools else "none")
    named = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    if choice != "required" and not isinstance(named, Mapping):
        fix = 'give "auto", "none", "required" or {"type": "function", "function": {"name": "…"}}'
        raise RequestError(f"is {choice!r:.60}", field="tool_choice", fix=fix)
    if not tools:
        raise RequestError(f"is {choice!r:.60} without tools", field="tool_choice", fix="give tools")
    if named is None:
        return ToolChoice("required")
    name = check_name(named.get("name"), "tool_choice.function.name")
    if all(tool.name != name for tool in tools):
        raise RequestError(f"is {name!r}, which is none of the tools", field="tool_choice.function.name", fix="name one of the tools")
    return ToolChoice("named", name)
