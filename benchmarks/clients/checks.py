"""The beginning of each client's script: where the server is, and a line for each check that passed."""

from __future__ import annotations

import json
import sys

URL, MODEL = sys.argv[1:3]  # such as http://127.0.0.1:8000 and smollm2
QUESTION = "What is the capital of Japan? Answer in one sentence."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}, "is_capital": {"type": "boolean"}},
    "required": ["city", "is_capital"],
    "additionalProperties": False,
}


def passed(check: str, seen: object) -> None:
    """Reports that `check` went well, and what was seen."""
    print(json.dumps({"check": check, "seen": str(seen)[:200]}), flush=True)
