"""instructor by the Responses API's tools."""

from __future__ import annotations

import instructor
import openai
import pydantic
from checks import MODEL, URL, passed


class Place(pydantic.BaseModel):
    """A city."""

    city: str = pydantic.Field(max_length=30)
    is_capital: bool


client = instructor.from_openai(openai.OpenAI(base_url=f"{URL}/v1", api_key="none"), mode=instructor.Mode.RESPONSES_TOOLS)
asked = {"model": MODEL, "input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 60}
place = client.responses.create(response_model=Place, **asked)
assert isinstance(place, Place)
passed("structured output", place)
