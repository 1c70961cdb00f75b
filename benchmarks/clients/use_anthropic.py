"""The anthropic client."""

from __future__ import annotations

import json
from typing import Any

import anthropic
from checks import MODEL, QUESTION, SCHEMA, URL, passed

client = anthropic.Anthropic(base_url=URL, api_key="none")
TOOL: Any = {"name": "weather", "description": "The weather of a city.", "input_schema": SCHEMA, "strict": True}


def asked(*messages: Any, **more: Any) -> Any:
    """The fields of a request."""
    return {"model": MODEL, "max_tokens": 60, "messages": messages, "extra_body": {"temperature": 0}, **more}


question = {"role": "user", "content": QUESTION}
said = client.messages.create(**asked(question, system=[{"type": "text", "text": "Answer briefly."}]))
assert "Tokyo" in said.content[0].text and said.stop_reason == "end_turn", said
passed("chat", said.content[0].text)

count = client.messages.count_tokens(model=MODEL, messages=[question], system="Answer briefly.")
assert count.input_tokens == said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)
passed("count_tokens", count.input_tokens)

with client.messages.stream(**asked(question, system="Answer briefly.")) as stream:
    pieces = list(stream.text_stream)
    last = stream.get_final_message()
assert "".join(pieces) == last.content[0].text == said.content[0].text and len(pieces) > 3
assert last.usage.output_tokens == said.usage.output_tokens
passed("stream", f"{len(pieces)} pieces")

forced = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather"}}
weather = {"role": "user", "content": "How is the weather in Oslo?"}
with client.messages.stream(**asked(weather, **forced)) as stream:
    called = stream.get_final_message()
[use] = called.content
assert use.type == "tool_use" and set(use.input) == {"city", "is_capital"} and called.stop_reason == "tool_use", called
result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "It rains in Oslo."}]}
told = client.messages.create(**asked(weather, {"role": "assistant", "content": called.content}, result, tools=[TOOL]))
assert told.content and told.stop_reason in ("end_turn", "max_tokens", "tool_use")
passed("tool call", f"weather({use.input})")

format = {"format": {"type": "json_schema", "schema": SCHEMA}}
filled = client.messages.create(**asked({"role": "user", "content": "What is the capital of France?"}, output_config=format))
assert set(json.loads(filled.content[0].text)) == {"city", "is_capital"}
passed("structured output", filled.content[0].text)

stopped = client.messages.create(**asked(question, stop_sequences=["Tokyo"]))
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Tokyo")
passed("stop sequence", stopped.content[0].text)

try:
    client.messages.create(**asked({"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "a"}}]}))
except anthropic.BadRequestError as error:
    passed("error", error.body)
else:
    raise AssertionError("an image was taken")
