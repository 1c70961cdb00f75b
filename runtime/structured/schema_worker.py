"""Checks JSON against schemas. `worker_host.py` answers jobs by it; it imports nothing of cupola."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import referencing.jsonschema

MAX_MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 300
KNOWN = referencing.jsonschema.SchemaRegistry()  # empty: nothing is fetched for a reference


def prepare() -> Callable[[dict[str, Any]], dict[str, str | None]]:
    """The function that answers jobs."""
    return answer


def answer(job: dict[str, Any]) -> dict[str, str | None]:
    """The fault of a schema or of a text under it."""
    try:
        return {"error": find_error(job["schema"], job.get("text"))}
    except Exception as error:  # noqa: BLE001  such as a pattern that is none, or a reference to nowhere
        return {"error": f"can't be checked: {error}"[:MAX_CHARACTERS]}


def find_error(schema: Any, text: str | None) -> str | None:
    """The fault of a JSON text, or of the schema if there is no text; None if there is none."""
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    if text is None:
        schema_error = jsonschema.exceptions.best_match(kind(kind.META_SCHEMA).iter_errors(schema))
        return None if schema_error is None else _describe(schema_error)
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"is no JSON: {error}"[:MAX_CHARACTERS]
    found = jsonschema.exceptions.best_match(kind(schema, registry=KNOWN).iter_errors(value))
    return None if found is None else _describe(found)


def _describe(error: jsonschema.ValidationError) -> str:
    """Where it is, and what."""
    return f"at {error.json_path[: MAX_CHARACTERS // 3]}: {error.message}"[:MAX_CHARACTERS]
