"""Chats to prompt text, through the model's own template.

A template comes with a model and may be hostile, so it is rendered in a process of its own (`template_worker.py`),
sandboxed, bounded in memory and output, and killed when its time is up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cupola.runtime.errors import RequestError

MAX_SECONDS = 5.0  # for one rendering, the start of the process included
MAX_CHARACTERS = 8_000_000
Message = Mapping[str, object]


class ChatTemplate:
    """A chat template. Safe to call from several threads; the process starts now and is used again and again."""

    def __init__(self, template: str, special_tokens: Mapping[str, str], *, max_seconds: float = MAX_SECONDS) -> None:
        self._template, self._special_tokens, self._max_seconds = template, dict(special_tokens), max_seconds
        self._lock = threading.Lock()
        self._worker = self._start()

    @property
    def text(self) -> str:
        """The template itself."""
        return self._template

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, tools: Sequence[Message] | None = None) -> str:
        """The prompt for `messages`, each with a "role" and a "content".

        Raises:
            RequestError: if the messages are malformed, the template refuses them, or it takes too much time or memory.
        """
        _check_messages(messages)
        variables = {**self._special_tokens, "messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        try:
            job = json.dumps({"template": self._template, "variables": variables, "seconds": self._max_seconds}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"can't be written as JSON: {error}", field="messages", fix="give plain strings, numbers, lists and dictionaries"
            ) from None
        with self._lock:
            answer = self._ask(job)
        if "text" not in answer:
            raise RequestError(
                f"the chat template failed: {answer['error']}", field="messages", fix="change the messages, or give a prompt instead"
            )
        return str(answer["text"])

    def close(self) -> None:
        """Ends the process. Rendering again starts a new one."""
        self._end()

    def _start(self) -> subprocess.Popen[str]:
        worker = _start_worker()
        self._end = weakref.finalize(self, _end_worker, worker)  # at the latest when this object or the program ends
        return worker

    def _ask(self, job: str) -> dict[str, object]:
        if self._worker.poll() is not None:
            self.close()
            self._worker = self._start()
        worker = self._worker
        assert worker.stdin is not None and worker.stdout is not None
        timer = threading.Timer(self._max_seconds, worker.kill)
        timer.start()
        try:
            worker.stdin.write(job + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline(8 * MAX_CHARACTERS)
        except (BrokenPipeError, ValueError):
            line = ""
        finally:
            timer.cancel()
        if line.endswith("\n"):
            answer: dict[str, object] = json.loads(line)
            return answer
        self.close()
        return {"error": f"it took more than {self._max_seconds:g} s or too much memory"}


def _start_worker() -> subprocess.Popen[str]:
    script = Path(__file__).with_name("template_worker.py")
    return subprocess.Popen(  # -P: the script's folder must not hide modules of the standard library
        [sys.executable, "-P", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for us alone
    )


def _end_worker(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # what was never read need not be flushed
            pipe.close()
    worker.wait()


def _check_messages(messages: Sequence[Message]) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError(f"is {messages!r:.60}", field="messages", fix="give a list of at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"is {message!r:.60}", field=f"messages[{i}]", fix='give {"role": "user", "content": "…"}')
        if not isinstance(message.get("content"), str | list | None):
            raise RequestError(f"is {message['content']!r:.60}", field=f"messages[{i}].content", fix="give a string")
