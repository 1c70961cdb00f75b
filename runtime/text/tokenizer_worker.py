"""Encodes texts: a JSON job a line in, a JSON answer a line out. Run as a script by `tokenizer.py`, with the tokenizer's file.

Imports nothing of cupola. Its memory is limited, and its processor time for each job.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time

import tokenizers

MAX_MEMORY_BYTES = 2 << 30


def main(file: str, identity: str) -> None:
    """Answers jobs until standard input ends; with an error, if the file is not the one that `identity` was taken of."""
    limit("RLIMIT_AS", MAX_MEMORY_BYTES)  # a huge allocation fails here instead of filling the machine
    status = os.stat(file)
    is_replaced = identity != f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"  # as `verified.identify`
    tokenizer = tokenizers.Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for line in sys.stdin:
        job = json.loads(line)
        limit("RLIMIT_CPU", math.ceil(time.process_time() + job["seconds"] + 1))  # even when nobody is left to end this process
        try:
            if is_replaced:
                raise RuntimeError("the tokenizer's file was replaced; start the program again")
            answer: dict[str, object] = {"ids": tokenizer.encode(job["text"], add_special_tokens=job["add_special_tokens"]).ids}
        except Exception as error:  # noqa: BLE001  the library raises plain Exception
            answer = {"error": f"{error}"[:200]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def limit(name: str, value: int) -> None:
    """Sets one of this process's limits, as far as the limit that it was started under allows."""
    if sys.platform != "win32":
        import resource

        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main(*sys.argv[1:])
