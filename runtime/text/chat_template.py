"""Chats to prompt text, through the model's own template.

A template comes with a model and may be hostile, so it is rendered in a process of its own (`template_worker.py`),
sandboxed, bounded in memory and output, and killed when its time is up.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from cupola.runtime.errors import RequestError
from cupola.runtime.worker_process import TooExpensiveError, WorkerProcess

MAX_SECONDS = 5.0  # for one rendering, the start of the process included
DEFAULT, TOOL_USE = "default", "tool_use"  # names of templates, as in transformers
Message = Mapping[str, object]


class ChatTemplate:
    """A model's chat template. Safe to call from several threads; the process starts now and is used again and again.

    Args:
        templates: the text, or several by name: "default" is for every chat, "tool_use" for chats with tools.
        special_tokens: what templates know by name, such as `bos_token`.
        max_seconds: for one rendering, the start of the process included.
    """

    def __init__(self, templates: str | Mapping[str, str], special_tokens: Mapping[str, str], *, max_seconds: float = MAX_SECONDS) -> None:
        self._templates = {DEFAULT: templates} if isinstance(templates, str) else dict(templates)
        self._special_tokens = dict(special_tokens)
        self._worker = WorkerProcess(Path(__file__).with_name("template_worker.py"), max_seconds=max_seconds)
        self._worker.start()

    @property
    def default(self) -> str | None:
        """The template for every chat; None if each must name the one it wants."""
        return self._templates.get(DEFAULT)

    def choose(self, *, has_tools: bool = False, name: str | None = None) -> str:
        """Which template a chat gets: the one called `name`, or that for tools if there is one, or the default.

        Raises:
            RequestError: if there is none of that name, or no default.
        """
        wanted = name or (TOOL_USE if has_tools and TOOL_USE in self._templates else DEFAULT)
        if wanted not in self._templates:
            problem = f"is {wanted!r:.60}, and the model has no template of that name"
            raise RequestError(problem, field="chat_template", fix=f"give one of {', '.join(sorted(self._templates))}")
        return wanted

    def text(self, name: str = DEFAULT) -> str:
        """The template called `name`, which must be there."""
        return self._templates[name]

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Message] | None = None,
        documents: Sequence[Message] | None = None,
        name: str | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt for `messages`, each with a "role" and a "content".

        Args:
            messages: the conversation.
            add_generation_prompt: whether the prompt ends with the beginning of an assistant's message.
            continue_final_message: whether it ends within the last message instead, right after its text.
            tools, documents: what the template may show beside the messages.
            name: of the template, where there are several.
            variables: further ones that the template may use, such as `enable_thinking`.

        Raises:
            RequestError: if the messages are malformed, the template refuses them, or it takes too much time or memory.
            EngineError: if the process was ended from outside, twice.
        """
        _check_messages(messages)
        template, mark = self.text(self.choose(has_tools=bool(tools), name=name)), f"~{uuid.uuid4().hex}~"
        chat = mark_end(messages, mark) if continue_final_message else messages
        prompted = add_generation_prompt and not continue_final_message
        fixed = {"messages": chat, "tools": tools, "documents": documents, "add_generation_prompt": prompted}
        given = {**self._special_tokens, **(variables or {}), **fixed}
        try:
            answer = self._worker.ask({"template": template, "variables": given})
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"can't be written as JSON: {error}", field="messages", fix="give plain strings, numbers, lists and dictionaries"
            ) from None
        except TooExpensiveError as error:
            answer = {"error": str(error)}
        if "text" not in answer:
            raise RequestError(
                f"the chat template failed: {answer['error']}", field="messages", fix="change the messages, or give a prompt instead"
            )
        text = str(answer["text"])
        return cut_at_end(text, mark) if continue_final_message else text

    def close(self) -> None:
        """Ends the process. Rendering again starts a new one."""
        self._worker.close()


def mark_end(messages: Sequence[Message], mark: str) -> list[Message]:
    """The messages with `mark` behind the last one's text: where it comes out of the template, that text ends. Raises RequestError."""
    last = dict(messages[-1])
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + mark
        return [*messages[:-1], last]
    parts = list(content) if isinstance(content, list) else []
    at = next((i for i in reversed(range(len(parts))) if isinstance(parts[i], Mapping) and isinstance(parts[i].get("text"), str)), None)
    if at is None:
        raise RequestError("finds no text to continue", field="continue_final_message", fix="end with a message that has a text")
    parts[at] = {**parts[at], "text": parts[at]["text"] + mark}
    return [*messages[:-1], {**last, "content": parts}]


def cut_at_end(text: str, mark: str) -> str:
    """The rendered text up to the last `mark`. Raises RequestError if the template left it out."""
    before, found, _ = text.rpartition(mark)
    if not found:
        problem = "can't be done: the model's template does not show the last message"
        raise RequestError(problem, field="continue_final_message", fix="set it to false, or end with an assistant's message")
    return before


def _check_messages(messages: Sequence[Message]) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise RequestError(f"is {messages!r:.60}", field="messages", fix="give a list of at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"is {message!r:.60}", field=f"messages[{i}]", fix='give {"role": "user", "content": "…"}')
        if not isinstance(message.get("content"), str | list | None):
            raise RequestError(f"is {message['content']!r:.60}", field=f"messages[{i}].content", fix="give a string")
