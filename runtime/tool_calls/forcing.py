"""The grammars that hold the model to a required call, so that it is sure to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cupola.runtime.tool_calls.checks import Tool, ToolChoice
from cupola.runtime.tool_calls.formats import ToolFormat

Constraint = Mapping[str, object]  # arguments of StructuredOutputs by name
MAX_CALLS = 16  # at once, if they are required: a small model left alone would go on and on
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("enum", "const", "default", "examples", "required")


def constraint_for(tools: Sequence[Tool], choice: ToolChoice, parallel: bool, format: ToolFormat, *, can_wait: bool) -> Constraint | None:
    """The constraint on the answer, which leaves nothing to be checked afterwards; None if anything goes.

    A named function's answer is its arguments alone: {"json": its schema}. "required" is a list of {"name", "parameters"}:
    {"json": schema}. "auto" with strict functions is {"structural_tag": …}, text with calls in the model's own format, if
    `can_wait`: a grammar waits for text, and sees no special tokens.
    """
    if choice.mode == "named":
        return {"json": _object_schema(next(tool for tool in tools if tool.name == choice.name)), "strict": True}
    if choice.mode == "required":
        return {"json": _calls_schema(tools, MAX_CALLS if parallel else 1), "strict": True}
    if choice.mode == "auto" and format.written and can_wait and any(tool.strict for tool in tools):
        return {"structural_tag": json.dumps(_tag(tools, parallel, format))}
    return None


def _calls_schema(tools: Sequence[Tool], max_calls: int) -> Mapping[str, object]:
    """Each tool's schema becomes a definition of its name, and its references then begin there."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "parameters": {"$ref": f"#/$defs/{tool.name}"}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    definitions = {tool.name: _rebase(_object_schema(tool), f"#/$defs/{tool.name}") for tool in tools}
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": max_calls, "$defs": definitions}


def _rebase(schema: object, root: str) -> object:
    """`schema` with every reference to its own root turned into one to `root`."""
    if isinstance(schema, list | tuple):
        return [_rebase(entry, root) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    rebased: dict[str, object] = {}
    for key, value in schema.items():
        if key in _NAMED_SCHEMAS and isinstance(value, Mapping):
            rebased[key] = {name: _rebase(entry, root) for name, entry in value.items()}
        elif key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            rebased[key] = root + value[1:]
        else:
            rebased[key] = value if key in _VALUES else _rebase(value, root)
    return rebased


def _object_schema(tool: Tool) -> Mapping[str, object]:
    return {"type": "object", **tool.parameters}


def _tag(tools: Sequence[Tool], parallel: bool, format: ToolFormat) -> Mapping[str, object]:
    """xgrammar's structural tag: any text, but what begins like a call is one."""
    assert format.written is not None
    begin, end = format.written
    tags = [
        {
            "type": "tag",
            "begin": begin.replace("NAME", tool.name),
            "content": {"type": "json_schema", "json_schema": _object_schema(tool) if tool.strict else {"type": "object"}},
            "end": end,
        }
        for tool in tools
    ]
    dispatch = {"type": "triggered_tags", "triggers": [format.begins[0]], "tags": tags, "stop_after_first": not parallel}
    return {"type": "structural_tag", "format": dispatch}
