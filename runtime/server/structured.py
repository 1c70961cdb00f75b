"""Which structure a request wants its answer to have, in the words of OpenAI's `response_format`, or vLLM's and llama-server's fields."""

from __future__ import annotations

from collections.abc import Mapping

from cupola.runtime.errors import RequestError
from cupola.runtime.server.protocol import Object, ResponseFormat, Sampling
from cupola.runtime.structured.structured_outputs import KINDS, StructuredOutputs

NAMES = {
    "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar",
    "json_schema": "json", "grammar": "grammar",
}  # fmt: skip


def structured_outputs_of(body: Sampling, of_tools: Mapping[str, object] | None = None) -> StructuredOutputs | None:
    """The form that the answer must have, `of_tools` if a call is wanted; None for plain text. Raises RequestError if several are given."""
    found: dict[str, Object] = {} if of_tools is None else {"tool_choice": dict(of_tools)}
    response_format = body.response_format
    if response_format is not None and (given := _of_format(response_format)):
        found["response_format"] = given
    for field, name in NAMES.items():
        value = getattr(body, field)
        if value is not None and (field, value) != ("grammar", ""):
            found[field] = {name: value}
    if body.structured_outputs is not None:
        found["structured_outputs"] = body.structured_outputs
    if not found:
        return None
    forms = [{name: value for name, value in arguments.items() if name != "strict"} for arguments in found.values()]
    if any(form != forms[0] for form in forms):
        raise RequestError(f"are given together: {', '.join(found)}", field=next(iter(found)), fix="give one of them")
    field = next(iter(found))
    if unknown := set(forms[0]) - set(KINDS):
        raise RequestError(f"has {', '.join(sorted(unknown))!r:.60}", field=field, fix=f"give one of {', '.join(KINDS)}")
    strict = [arguments["strict"] for arguments in found.values() if arguments.get("strict")]
    return StructuredOutputs(**forms[0], strict=strict[0] if strict else False)


def _of_format(given: ResponseFormat) -> Object | None:
    """The structured output that a `response_format` requires; None for plain text. Raises RequestError."""
    json_schema = given.json_schema
    schema = given.plain_schema if json_schema is None else json_schema.get("schema")
    if given.type == "structural_tag":
        raise RequestError("is not supported", field="response_format.type", fix="use json_schema")
    if json_schema is not None and given.plain_schema not in (None, schema):
        raise RequestError("differs from json_schema.schema", field="response_format.schema", fix="give one of them")
    if given.type == "text":
        if schema is not None:
            raise RequestError("is text, and there is a schema", field="response_format.type", fix="use json_schema")
        return None
    if given.type == "json_object" and schema is None:
        return {"json_object": True}
    if not isinstance(schema, dict | bool):
        raise RequestError("has no schema", field="response_format.json_schema", fix='give {"name": "…", "schema": {…}}')
    strict = (json_schema or {}).get("strict")
    if not isinstance(strict, bool | None):
        raise RequestError(f"is {strict!r:.60}", field="response_format.json_schema.strict", fix="give true or false")
    return {"json": schema, "strict": bool(strict)}
