"""Which structure a request asks for, said in several ways at once."""

from __future__ import annotations

import pytest

from cupola.runtime.errors import RequestError
from cupola.runtime.server.protocol import CompletionRequest
from cupola.runtime.server.structured import structured_outputs_of

GRAMMAR = 'root ::= "a"'


def asked(**fields: object) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": "p", **fields})


def test_the_same_said_twice_is_said_once():
    found = structured_outputs_of(asked(guided_grammar=GRAMMAR, structured_outputs={"grammar": GRAMMAR}))
    assert found is not None and found.grammar == GRAMMAR
    with pytest.raises(RequestError, match="guided_grammar: are given together: guided_grammar, structured_outputs"):
        structured_outputs_of(asked(guided_grammar=GRAMMAR, structured_outputs={"grammar": 'root ::= "b"'}))


def test_strict_is_strict_wherever_it_is_said():
    schema = {"type": "object"}
    response_format = {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    found = structured_outputs_of(asked(response_format=response_format, guided_json=schema))
    assert found is not None and found.strict
    found = structured_outputs_of(asked(structured_outputs={"json": schema, "strict": True}))
    assert found is not None and found.strict
    found = structured_outputs_of(asked(guided_json=schema))
    assert found is not None and not found.strict
    with pytest.raises(RequestError, match="json_schema.strict: is 'yes'"):
        structured_outputs_of(asked(response_format={"type": "json_schema", "json_schema": {"schema": schema, "strict": "yes"}}))
