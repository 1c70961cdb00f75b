"""SmolLM2 at temperature 1 under a grammar: JSON that validates, and nothing that a bad grammar can harm."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jsonschema
import pytest

from cupola import LLM, RequestError, SamplingParams, StructuredOutputs

# Every answer has room in max_tokens: strings and arrays have a longest length, numbers a largest value.
NAME, WORD = {"type": "string", "maxLength": 16}, {"type": "string", "pattern": "^[a-z]{1,12}$"}
AGE, SCORE, FLAG = {"type": "integer", "minimum": 0, "maximum": 120}, {"type": "integer", "minimum": -5, "maximum": 5}, {"type": "boolean"}
COLOUR = {"enum": ["red", "green", "blue"]}


def record(properties: dict, *optional: str) -> dict:
    return {"type": "object", "properties": properties, "required": [name for name in properties if name not in optional]}


def many(items: dict, fewest: int = 0, most: int = 3) -> dict:
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": most}


POINT, PERSON = record({"x": SCORE, "y": SCORE}), record({"name": NAME, "age": AGE}, "age")
LEAF = {"type": "null"}
LIST = record({"value": SCORE, "next": {"anyOf": [LEAF, record({"value": SCORE, "next": LEAF})]}})
CIRCLE, SQUARE = record({"kind": {"const": "circle"}, "radius": AGE}), record({"kind": {"const": "square"}, "side": AGE})
SCHEMAS = {
    "a record": PERSON,
    "optional properties": record({"name": NAME, "age": AGE, "email": NAME, "active": FLAG}, "age", "email", "active"),
    "nested records": record({"person": record({"home": record({"city": NAME, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})})}),
    "deep nesting": record({"a": record({"b": record({"c": record({"d": record({"e": record({"f": SCORE})})})})})}),
    "an enum": record({"colour": COLOUR}),
    "an enum of kinds": record({"value": {"enum": [1, "one", True, None, 2.5]}}),
    "an enum of values with quotes": {"enum": ['say "hi"', "back\\slash", "new\nline", "ümlaut", "日本"]},
    "a constant": record({"version": {"const": 3}, "kind": {"const": {"a": [1, None]}}, "name": NAME}),
    "an array": many(AGE, 2, 6),
    "an array of records": many(PERSON, 1),
    "an array of arrays": many(many(SCORE, 1), 1),
    "a tuple": {"type": "array", "prefixItems": [WORD, AGE, FLAG], "items": False, "minItems": 3},
    "a tuple and more": {"type": "array", "prefixItems": [WORD], "items": SCORE, "maxItems": 4},
    "exactly three": many(COLOUR, 3, 3),
    "a pattern": record({"phone": {"type": "string", "pattern": "^\\(?[0-9]{3}\\)?-[0-9]{4}$"}}),
    "a pattern of words": record({"slug": {"type": "string", "pattern": "^[a-z]{1,8}(-[a-z]{1,8}){0,2}$"}}),
    "a code": {"type": "string", "pattern": "^(AB|CD)-\\d{2,4}[xyz]?$"},
    "a pattern of any characters": record({"text": {"type": "string", "pattern": "^.{1,20}$"}}),
    "dates": record({"day": {"type": "string", "format": "date"}, "at": {"type": "string", "format": "date-time"}}),
    "an id": record({"id": {"type": "string", "format": "uuid"}, "address": {"type": "string", "format": "ipv4"}}),
    "a ref": {"$defs": {"point": POINT}, **record({"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}})},
    "refs to refs": {"$defs": {"n": SCORE, "p": record({"x": {"$ref": "#/$defs/n"}})}, **many({"$ref": "#/$defs/p"})},
    "an old ref": {"definitions": {"colour": COLOUR}, **record({"colour": {"$ref": "#/definitions/colour"}})},
    "a ref to a property": {**record({"a": POINT, "b": {"$ref": "#/properties/a"}})},
    "a list of links": LIST,
    "any of": record({"value": {"anyOf": [AGE, FLAG, COLOUR, {"type": "null"}]}}),
    "one of": {"oneOf": [CIRCLE, SQUARE]},
    "several types": record({"value": {"type": ["string", "boolean", "null"], "maxLength": 12}}),
    "numbers": record({"n": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}, "limit": {"exclusiveMinimum": 0, **AGE}}),
    "free names": {"type": "object", "additionalProperties": SCORE, "propertyNames": {"pattern": "^[a-z]{1,6}$"}, "maxProperties": 3},
    "names with quotes": record({'the "name"': NAME, "straße": FLAG}),
    "lengths": record({"short": {**NAME, "minLength": 1, "maxLength": 3}, "long": {**NAME, "minLength": 10, "maxLength": 24}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def llm(smollm2_w4a8) -> Iterator[LLM]:
    llm = LLM(smollm2_w4a8.path)
    yield llm
    llm.engine.close()


def test_every_answer_to_a_schema_validates(llm):
    """Twice each, in one batch, so that grammars of all kinds run side by side.

    Where a schema sets no bound, such as to the digits of a second, a small model may go on for ever: it is asked again.
    """
    assert len(SCHEMAS) >= 30
    asked = [(name, seed) for seed in (1, 2) for name in SCHEMAS]
    for _ in range(5):
        prompts = [llm.render_chat([{"role": "user", "content": f"Make up an example of {name}, as JSON."}]) for name, _ in asked]
        params = [
            SamplingParams(temperature=1, seed=seed, max_tokens=400, structured_outputs=StructuredOutputs(json=SCHEMAS[name]))
            for name, seed in asked
        ]
        outputs, unfinished = llm.generate(prompts, params, add_special_tokens=False), []
        for output, (name, seed) in zip(outputs, asked, strict=True):
            completion = output.outputs[0]
            if completion.finish_reason == "length":
                unfinished.append((name, seed + 2))
                continue
            assert completion.finish_reason == "stop", (name, completion)
            jsonschema.Draft202012Validator(SCHEMAS[name]).validate(json.loads(completion.text))
        assert len(unfinished) <= 3, unfinished
        asked = unfinished
        if not asked:
            break
    assert not asked
    llm.engine.check_idle()


def test_every_form_of_structure(llm):
    forms = [
        StructuredOutputs(choice=["yes", "no", "I don't know"]),
        StructuredOutputs(regex="[A-Z][a-z]{2,8}, [0-9]{1,3}"),
        StructuredOutputs(grammar='root ::= sum\nsum ::= term ("+" term){1,3}\nterm ::= [0-9]{1,2} | "(" sum ")"'),
        StructuredOutputs(json_object=True),
        StructuredOutputs(structural_tag=CALL),
    ]
    outputs = llm.generate(
        ["The answer is"] * len(forms), [SamplingParams(seed=1, max_tokens=60, structured_outputs=form) for form in forms]
    )
    choice, regex, grammar, whole, tag = (output.outputs[0] for output in outputs)
    assert choice.text in forms[0].choice and choice.finish_reason == "stop"
    assert re.fullmatch(forms[1].regex, regex.text)
    assert grammar.finish_reason == "length" or re.fullmatch(r"[0-9+()]+", grammar.text)
    assert whole.text.startswith("{") and (whole.finish_reason == "length" or isinstance(json.loads(whole.text), dict))
    assert re.fullmatch(r"<call>\{\s*\"n\"\s*:\s*-?[0-5]\s*\}</call>", tag.text) and tag.finish_reason == "stop"


CALL = {
    "type": "structural_tag",
    "format": {"type": "tag", "begin": "<call>", "content": {"type": "json_schema", "json_schema": record({"n": SCORE})}, "end": "</call>"},
}


def test_streams_are_what_generate_gives(llm):
    params = SamplingParams(seed=4, max_tokens=200, structured_outputs=StructuredOutputs(json=PERSON))
    assert "".join(llm.stream("A person:", params)) == llm.generate("A person:", params)[0].outputs[0].text


# Group 4 of what must lose nothing: each is refused, or ends with an error of its own, or is answered.
BAD = {
    "a pattern that takes ever longer": {"regex": "(.*)*(.*)*(.*)*(.*)*(.*)*x{3}"},
    "a pattern of nested repeats": {"regex": "((a{1,100}){1,100}){1,100}"},
    "a pattern in a schema": {"json": record({"a": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}})},
    "a grammar that means everything twice": {"grammar": 'root ::= s\ns ::= s s s | s s | [a-z ] | ""'},
    "a recursive ref": {"json": {"$ref": "#"}},
    "a schema of itself": {"json": record({"x": {"$ref": "#"}})},
    "what nothing satisfies": {"json": {"type": "integer", "minimum": 5, "maximum": 3}},
    "100,000 values": {"json": {"enum": list(range(100_000))}},
    "30,000 parentheses": {"regex": "(" * 30_000 + "a" + ")" * 30_000},
}


@pytest.mark.by_turns
@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_a_bad_grammar_harms_nobody_else(llm, fields):
    neighbour = SamplingParams(temperature=0, max_tokens=24)
    expected = llm.generate("Once upon a time", neighbour)[0].outputs
    requests = []
    try:
        requests.append(llm.engine.add_request("beside", "Once upon a time", neighbour))
        bad = SamplingParams(temperature=1, seed=1, max_tokens=120, ignore_eos=True, structured_outputs=StructuredOutputs(**fields))
        requests.append(llm.engine.add_request("bad", "aaa", bad))
    except RequestError as error:
        assert str(error.field).startswith("structured_outputs.")
    while not requests[0].finished:
        llm.engine.step()
    assert requests[0].output().outputs == expected
    while not requests[-1].finished:
        llm.engine.step()
    assert requests[-1].output().outputs[0].finish_reason in ("stop", "length", "error")
    llm.engine.check_idle()


def test_a_flood_of_schemas_leaves_no_processes_behind(llm):
    params = [SamplingParams(max_tokens=16, structured_outputs=StructuredOutputs(json=record({f"name{i}": FLAG}))) for i in range(100)]
    outputs = llm.generate(["A flag:"] * 100, params)
    texts = [output.outputs[0].text for output in outputs]
    assert all(json.loads(text) in ({f"name{i}": True}, {f"name{i}": False}) for i, text in enumerate(texts))
    assert len(llm.engine._compiler._kept) <= 16
    llm.engine.check_idle()
