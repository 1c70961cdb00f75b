"""Checks answers against what their JSON schema asks for and no grammar can hold them to (JSON Schema, by the library jsonschema).

A schema may come from anyone, and its patterns may take for ever: the checks run in a process of their own (`schema_worker.py`), in
bounded time and memory.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from cupola.runtime.errors import RequestError
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from cupola.runtime.worker_process import TooExpensiveError, WorkerProcess

MAX_SECONDS = 2.0
SCRIPT = Path(__file__).with_name("schema_worker.py")


class SchemaChecker:
    """Checks JSON texts. Starts its process with the first one; safe to call from several threads."""

    def __init__(self, *, max_seconds: float = MAX_SECONDS) -> None:
        self._worker = WorkerProcess(SCRIPT, max_seconds=max_seconds)

    def prepare(self, structured_outputs: StructuredOutputs) -> str | None:
        """The schema that `find_error` is to check the output against; None if the grammar holds the output to all of it.

        Raises:
            RequestError: if it is no valid schema, or jsonschema is not installed.
            EngineError: if no process could say so, twice.
        """
        schema = structured_outputs.checked_schema
        if schema is None:
            return None
        field = structured_outputs.field
        if importlib.util.find_spec("jsonschema") is None:
            problem = "needs the library jsonschema to check the answer, since no grammar holds it to all of the schema"
            raise RequestError(problem, field=field, fix="pip install jsonschema, or set strict to see what it is")
        error = self._ask({"schema": json.loads(schema)})
        if error is not None:
            raise RequestError(f"is no valid JSON schema: {error}", field=field, fix="correct it")
        return schema

    def find_error(self, schema: str, text: str) -> str | None:
        """The part of a JSON text that does not validate, and why; None if all does. Raises EngineError."""
        return self._ask({"schema": json.loads(schema), "text": text})

    def close(self) -> None:
        """Ends the process. The next check starts a new one."""
        self._worker.close()

    def _ask(self, job: dict[str, Any]) -> str | None:
        try:
            error = self._worker.ask(job)["error"]
        except TooExpensiveError as problem:
            return f"can't be checked: {problem}"
        return None if error is None else str(error)
