"""Checks JSON against schemas: a JSON job a line in, a JSON answer a line out. Run as a script by `schema_checker.py`.

Imports nothing of cupola. Its memory is limited, and its processor time for each job.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import jsonschema
import referencing.jsonschema

MAX_MEMORY_BYTES = 1 << 30
MAX_CHARACTERS = 300
KNOWN = referencing.jsonschema.SchemaRegistry()  # empty: nothing is fetched for a reference


def main() -> None:
    """Answers jobs until standard input ends."""
    limit("RLIMIT_AS", MAX_MEMORY_BYTES)  # a huge allocation fails here instead of filling the machine
    for line in sys.stdin:
        job = json.loads(line)
        limit("RLIMIT_CPU", math.ceil(time.process_time() + job["seconds"] + 1))  # even when nobody is left to end this process
        try:
            answer: dict[str, object] = {"error": find_error(job["schema"], job.get("text"))}
        except Exception as error:  # noqa: BLE001  such as a pattern that is none, or a reference to nowhere
            answer = {"error": f"can't be checked: {error}"[:MAX_CHARACTERS]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


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


def limit(name: str, value: int) -> None:
    """Sets one of this process's limits, as far as the limit that it was started under allows."""
    if sys.platform != "win32":
        import resource

        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
