"""openai-agents with its defaults: the Responses API."""

from __future__ import annotations

import asyncio

import agents
import openai
import pydantic
from checks import MODEL, QUESTION, URL, passed

calls: list[str] = []


@agents.function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    calls.append(city)
    return f"It rains in {city}."


class Place(pydantic.BaseModel):
    """A city."""

    city: str = pydantic.Field(max_length=30)
    is_capital: bool


async def main() -> None:
    """Chats, streams, calls a tool, fills a form, and goes on from a response that the server keeps."""
    client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none")
    agents.set_default_openai_client(client, use_for_tracing=False)
    agents.set_tracing_disabled(True)
    short = agents.ModelSettings(temperature=0, max_tokens=60)

    talker = agents.Agent(name="Talker", instructions="Answer briefly.", model=MODEL, model_settings=short)
    said = await agents.Runner.run(talker, QUESTION)
    assert "Tokyo" in said.final_output, said.final_output
    passed("chat", said.final_output)

    deltas = []
    streamed = agents.Runner.run_streamed(talker, QUESTION)
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            deltas.append(event.data.delta)
    assert len(deltas) > 3 and "".join(deltas) == streamed.final_output == said.final_output
    passed("stream", f"{len(deltas)} deltas")

    forced = agents.ModelSettings(temperature=0, max_tokens=60, tool_choice="required")
    forecaster = agents.Agent(name="Forecaster", instructions="Use the tool.", model=MODEL, model_settings=forced, tools=[weather])
    told = await agents.Runner.run(forecaster, "How is the weather in Oslo?")
    assert calls and told.final_output, calls
    passed("tool call", f"weather({calls[0]!r}), then: {told.final_output}")

    filler = agents.Agent(name="Filler", instructions="Name the city.", model=MODEL, model_settings=short, output_type=Place)
    place = (await agents.Runner.run(filler, "What is the capital of France?")).final_output
    assert isinstance(place, Place)
    passed("structured output", place)

    more = await agents.Runner.run(talker, "And of Italy?", previous_response_id=said.last_response_id)
    assert "Rome" in more.final_output, more.final_output
    passed("previous_response_id", more.final_output)


asyncio.run(main())
