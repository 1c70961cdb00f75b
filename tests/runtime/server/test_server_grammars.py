"""Grammars may come from anyone: group 4 of the bad inputs, over HTTP."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import lark
import pytest

from tests.runtime.server.harness import Server, error_of
from tests.systems import needs


def response_format(schema: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


ENORMOUS = "Lark's form of what is enormous"
ENDLESS = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
BAD = {
    "a pattern that takes ever longer": {"guided_regex": "(.*)*(.*)*(.*)*(.*)*(.*)*x{3}"},
    "a pattern of nested repeats": {"guided_regex": "((a{1,100}){1,100}){1,100}"},
    "a grammar that means everything twice": {"guided_grammar": 'root ::= s\ns ::= s s s | s s | [a-z ] | ""'},
    "a recursive ref": response_format({"$ref": "#"}),
    "a schema that never ends": response_format(ENDLESS),
    "what nothing satisfies": response_format({"type": "integer", "minimum": 5, "maximum": 3}),
    "100,000 values": response_format({"enum": list(range(100_000))}),
    "30,000 parentheses": {"guided_regex": "(" * 30_000 + "a" + ")" * 30_000},
    "a schema that is deep": response_format(json.loads('{"properties":{"a":' * 60 + "{}" + "}}" * 60)),
    "no schema": response_format(3),
    "no regular expression": {"guided_regex": "(((("},
    "no grammar": {"guided_grammar": "root ::= nobody"},
    "no choices": {"guided_choice": []},
    ENORMOUS: {"guided_grammar": 'start: t{"a"}\nt{x}: t{u{x}}\nu{x}: x'},
    "Lark's form of a file": {"guided_grammar": "%import .secrets.x\nstart: x"},
    "two at once": {"guided_regex": "a", "guided_choice": ["b"]},
}


# Without limits of memory and of processor time it takes a minute and more, which no client waits for.
CASES = [
    pytest.param(fields, id=name, marks=needs("limits of memory and of processor time") if name == ENORMOUS else ())
    for name, fields in BAD.items()
]


@pytest.mark.parametrize("fields", CASES)
def test_a_bad_grammar_is_refused_or_followed_and_harms_nobody(server: Server, fields: dict[str, object]) -> None:
    response = server.post({"prompt": "a", "max_tokens": 40, "temperature": 1, "seed": 1, **fields})
    if response.status_code == 200:
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] in ("stop", "length")
        if choice["finish_reason"] == "stop" and "guided_regex" in fields:
            assert re.fullmatch(str(fields["guided_regex"]), choice["text"])
    else:
        error_of(response)


SUMS = """
    start: INT (("+" | "-") INT)~1..3
    %import common (INT, WS_INLINE)
    %ignore WS_INLINE
"""


@pytest.mark.parametrize("fields", [{"guided_grammar": SUMS}, {"grammar": SUMS}, {"structured_outputs": {"grammar": SUMS}}], ids="".join)
def test_a_grammar_in_larks_form_is_followed(server: Server, fields: dict[str, object]) -> None:
    choices = server.post({"prompt": "a", "max_tokens": 300, "temperature": 1, "seed": 1, "n": 4, **fields}).json()["choices"]
    ended = [choice["text"] for choice in choices if choice["finish_reason"] == "stop"]
    assert ended
    for text in ended:
        lark.Lark(SUMS, parser="earley").parse(text)


def test_a_flood_of_schemas(server: Server) -> None:
    def ask(number: int) -> int:
        schema = {"type": "object", "properties": {f"field{number}": {"type": "boolean"}}, "required": [f"field{number}"]}
        response = server.post({"prompt": "a", "max_tokens": 60, "temperature": 1, "seed": number, **response_format(schema)})
        if response.status_code == 200:
            jsonschema.validate(json.loads(response.json()["choices"][0]["text"]), schema)
        else:
            assert int(response.headers["Retry-After"]) > 0
            error_of(response, 429)
        return response.status_code

    with ThreadPoolExecutor(48) as clients:
        statuses = list(clients.map(ask, range(96)))
    assert statuses.count(200) >= 32, "more than wait at once were refused"


HUGE = [2**63, 2**64, 10**30, -(10**30)]
HUGE_IN_A_SCHEMA = {
    "default": [{"type": "string", "maxLength": 9, "default": number} for number in HUGE],
    "maximum": [{"type": "integer", "maximum": abs(number)} for number in HUGE],
    "const": [{"const": number} for number in HUGE],
}


@pytest.mark.parametrize("keyword", HUGE_IN_A_SCHEMA)
def test_numbers_that_no_machine_word_holds(server: Server, keyword: str) -> None:
    """They are used or refused, and what was asked with them isn't counted any longer: as many more would be too many."""
    for schema in HUGE_IN_A_SCHEMA[keyword]:
        for _ in range(3):
            response = server.post({"prompt": "a", "max_tokens": 40, "temperature": 0, "n": 128, **response_format(schema)})
            if response.status_code != 200:
                error_of(response)
            elif response.json()["choices"][0]["finish_reason"] == "stop":
                jsonschema.validate(json.loads(response.json()["choices"][0]["text"]), schema)
    assert server.post({"prompt": "a", "max_tokens": 1}).status_code == 200


TWINS = {"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 2, "uniqueItems": True}  # the grammar leaves but one answer
UNLIKE = {"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 2, "not": {"const": [2]}}
VERDICTS = {"breaks it": (TWINS, "at $: [1, 1] has non-unique elements"), "keeps it": (UNLIKE, None)}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("schema", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_what_a_grammar_can_not_say_is_checked_when_the_answer_is_there(
    server: Server, path: str, stream: bool, schema: dict[str, object], verdict: str | None
) -> None:
    asked = {"prompt": "a"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "a"}]}
    fields = {**asked, "max_tokens": 40, "temperature": 0, **response_format(schema)}
    if stream:
        choices = [event["choices"][0] for event in server.events({**fields, "stream": True}, path)]
        assert all("schema_error" not in choice for choice in choices[:-1]), "only the last one's end is told"
        text = "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)
    else:
        choices = server.post(fields, path).json()["choices"]
        text = choices[0]["text"] if "text" in choices[0] else choices[0]["message"]["content"]
    assert json.loads(text) == [1, 1] and choices[-1]["finish_reason"] == "stop"
    assert choices[-1].get("schema_error") == verdict
    assert ("schema_error" in choices[-1]) == (verdict is not None)


def test_where_it_must_hold_in_full_it_is_refused(server: Server) -> None:
    """So it is under `strict`, and where an answer has no place to say that it breaks its schema."""
    strict = {"type": "json_schema", "json_schema": {"schema": TWINS, "strict": True}}
    tool = {"name": "count", "parameters": {"type": "object", "properties": {"a": TWINS}}}
    form = {"type": "json_schema", "schema": TWINS}
    message = {"messages": [{"role": "user", "content": "a"}]}
    required = {**message, "tools": [{"type": "function", "function": tool}], "tool_choice": "required"}
    for path, fields, at in (
        ("/v1/completions", {"prompt": "a", "response_format": strict}, "structured_outputs.json"),
        ("/v1/chat/completions", required, "structured_outputs.json"),
        ("/v1/responses", {"input": "a", "text": {"format": {**form, "name": "a"}}}, "text.format.schema"),
        ("/v1/messages", {**message, "max_tokens": 9, "output_config": {"format": form}}, "output_config.format.schema"),
    ):
        response = server.post(fields, path)
        assert response.status_code == 400 and "uniqueItems is not supported" in response.text and at in response.text, path


def test_a_schema_that_can_not_be_checked_is_refused(server: Server) -> None:
    problem = error_of(server.post({"prompt": "a", **response_format({"type": "string", "not": 5})}))
    assert problem["param"] == "structured_outputs.json" and "no valid JSON schema" in problem["message"]
