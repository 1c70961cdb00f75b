"""Encodes texts by a tokenizer's file. `worker_host.py` answers jobs by it; it imports nothing of cupola."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import tokenizers

MAX_MEMORY_BYTES = 2 << 30


def prepare(file: str, identity: str) -> Callable[[dict[str, Any]], dict[str, object]]:
    """The function that answers jobs; with an error, if the file is not the one that `identity` was taken of."""
    status = os.stat(file)
    is_replaced = identity != f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"  # as `verified.identify`
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def answer(job: dict[str, Any]) -> dict[str, object]:
        try:
            if is_replaced:
                raise RuntimeError("the tokenizer's file was replaced; start the program again")
            return {"ids": tokenizer.encode(job["text"], add_special_tokens=job["add_special_tokens"]).ids}
        except Exception as error:  # noqa: BLE001  the library raises plain Exception
            return {"error": f"{error}"[:200]}

    return answer
