"""litellm's Anthropic bridge: chats as OpenAI has them, sent to /v1/messages."""

from __future__ import annotations

from typing import Any

import litellm
from checks import MODEL, QUESTION, SCHEMA, URL, passed

TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": SCHEMA}}


def ask(question: str, **more: Any) -> Any:
    """The answer to a question."""
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": question}]
    fields = {"model": f"anthropic/{MODEL}", "api_base": URL, "api_key": "none", "temperature": 0, "max_tokens": 60, **more}
    return litellm.completion(messages=messages, **fields)


said = ask(QUESTION)
text = said.choices[0].message.content
assert "Tokyo" in text, said
assert said.usage.prompt_tokens > 10 and said.usage.completion_tokens > 1
passed("chat", text)

pieces = [chunk.choices[0].delta.content or "" for chunk in ask(QUESTION, stream=True)]
assert "".join(pieces) == text and sum(map(bool, pieces)) > 3, pieces
passed("stream", f"{len(pieces)} chunks")

called = ask("How is the weather in Oslo?", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}})
[call] = called.choices[0].message.tool_calls
assert call.function.name == "weather" and called.choices[0].finish_reason == "tool_calls", called
passed("tool call", call.function.arguments)
