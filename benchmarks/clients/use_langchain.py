"""langchain-openai by the Responses API."""

from __future__ import annotations

from checks import MODEL, QUESTION, SCHEMA, URL, passed
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", use_responses_api=True, temperature=0, max_tokens=60)


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"It rains in {city}."


said = model.invoke(QUESTION)
assert "Tokyo" in said.text, said
passed("chat", said.text)

chunks = [chunk.text for chunk in model.stream(QUESTION)]
assert "".join(chunks) == said.text and sum(map(bool, chunks)) > 3
passed("stream", f"{len(chunks)} chunks")

bound = model.bind_tools([weather], tool_choice="weather")
asked = HumanMessage("How is the weather in Oslo?")
called = bound.invoke([asked])
[call] = called.tool_calls
result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
answer = model.bind_tools([weather]).invoke([asked, called, result])
assert call["name"] == "weather" and answer.response_metadata["status"] in ("completed", "incomplete")
passed("tool call", f"weather({call['args']}), then: {answer.text}")

filled = model.with_structured_output({"title": "place", **SCHEMA}, method="json_schema").invoke("What is the capital of France?")
assert set(filled) == {"city", "is_capital"}
passed("structured output", filled)
