"""Whatever is said at random under a schema's grammar validates; schemas that can't be held to are refused."""

from __future__ import annotations

import json
import re
import socket

import jsonschema
import numpy as np
import pytest

from cupola.runtime.errors import RequestError
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.schema_checker import SchemaChecker
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from tests.runtime.structured.test_grammar import END, VOCAB, allowed_ids, ask
from tests.runtime.tokenizers_for_tests import byte_level, save

A, B = {"a": {"type": "integer"}}, {"b": {"type": "boolean"}}
SMALL = {"type": "integer", "minimum": -99, "maximum": 99}
TREE = {
    "type": "object",
    "properties": {"v": SMALL, "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
    "required": ["v", "next"],
}


def tagged(tag: str, properties: dict) -> dict:
    return {"type": "object", "properties": {"tag": {"const": tag}, **properties}, "required": ["tag"]}


def decimal(max_digits: int | None, places: int | None) -> str:
    """The pattern that pydantic 2.12 writes for a `Decimal`."""
    if places is None:
        rest = rf"(?:\d{{0,{max_digits}}}|(?=[\d.]{{1,{max_digits + 1}}}0*$)\d*\.\d*0*$)"
    elif max_digits is None:
        rest = rf"\d*\.?\d{{0,{places}}}0*$"
    else:
        whole = max_digits - places
        rest = rf"(?:\d{{0,{whole}}}|(?=[\d.]{{1,{max_digits + 1}}}0*$)\d{{0,{whole}}}\.\d{{0,{places}}}0*$)"
    return r"^(?!^[-+.]*$)[+-]?0*" + rest


HELD = {
    "const": {"const": {"a": [1, None, 'x"\n\\']}},
    "enum": {"enum": [1, "a", None, {"b": [1.5]}, "\u0007ü"]},
    "enum and type": {"type": ["string", "null"], "enum": ["a", None]},
    "boolean": {"type": "boolean"},
    "range": {"type": "integer", "minimum": -17, "maximum": 2300},
    "open range": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    "real range": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "open real range": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "length": {"type": "string", "minLength": 2, "maxLength": 4},
    "types": {"type": ["string", "null", "integer"], "maxLength": 5, "minimum": 5},
    "pattern": {"type": "string", "pattern": "^\\d{3}-[A-F]{2}(x|yz)?$"},
    "part of a pattern": {"type": "string", "pattern": "ab"},
    "class that leaves out": {"type": "string", "pattern": '^[^"a-z\\\\\\n]{2}$'},
    "any characters": {"type": "string", "pattern": "^.\\S\\D[!-~][^,]$"},
    "what is optional": {"type": "string", "pattern": "^(ab+)?c(d*|e){2,}$"},
    "counted often": {"type": "string", "pattern": "^([^,]{129,140}|\\S)$"},
    "date-time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "unknown format": {"type": "object", "properties": {"a": {"type": "string", "format": "unknown"}}},
    "object": {"type": "object", "properties": {**A, **B}, "required": ["b"]},
    "nested": {"type": "object", "properties": {"o": {"type": "object", "properties": A, "required": ["a"]}}, "required": ["o"]},
    "names to escape": {"type": "object", "properties": {'a"b\n': SMALL, "héé": SMALL}, "required": ['a"b\n', "héé"]},
    "names whose letters are digits too": {"properties": {"ßa0": SMALL, "\x80f": SMALL, "\\xe9": SMALL}, "required": ["ßa0", "\x80f"]},
    "free names": {"type": "object", "additionalProperties": SMALL, "maxProperties": 2, "propertyNames": {"pattern": "^[a-z]{1,3}$"}},
    "named and free": {"properties": A, "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "names by pattern": {"type": "object", "patternProperties": {"^x[0-9]$": SMALL}, "additionalProperties": False, "maxProperties": 3},
    "number of names": {"type": "object", "properties": {**A, **B, "c": SMALL}, "minProperties": 2, "maxProperties": 2},
    "without a type": {"properties": A, "required": ["a"]},
    "array": {"type": "array", "items": SMALL, "minItems": 2, "maxItems": 4},
    "array of arrays": {"type": "array", "items": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2}, "maxItems": 2},
    "tuple": {"type": "array", "prefixItems": [SMALL, {"type": "boolean"}], "items": False, "minItems": 2},
    "tuple and more": {"type": "array", "prefixItems": [SMALL], "items": {"type": "boolean"}, "maxItems": 4},
    "any of": {"anyOf": [SMALL, {"type": "boolean"}, {"type": "string", "maxLength": 2}]},
    "one of": {"oneOf": [SMALL, {"type": "boolean"}, {"enum": ["a", "b"]}]},
    "one of some that are tagged": {"$defs": {"A": tagged("a", A)}, "oneOf": [{"$ref": "#/$defs/A"}, tagged("b", B)]},
    "one of some that lack a name": {"oneOf": [{"properties": A, "additionalProperties": False}, {"properties": B, "required": ["b"]}]},
    "all of one": {"allOf": [SMALL], "title": "one"},
    "ref": {"$defs": {"s": SMALL}, "$ref": "#/$defs/s", "description": "a ref"},
    "ref to a property": {"type": "object", "properties": {"a": SMALL, "b": {"$ref": "#/properties/a"}}, "required": ["a", "b"]},
    "recursion": {"$defs": {"tree": TREE}, "$ref": "#/$defs/tree"},
    "boolean schemas": {"type": "object", "properties": {"a": True}, "unevaluatedProperties": False},
    "number": {"type": "number"},
    "whole number": {"type": "integer"},
    "whole number from 0": {"type": "integer", "minimum": 0},
    "Decimal": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}]},
    "Decimal of 5 digits, 2 of them places": {"type": "string", "pattern": decimal(5, 2)},
    "Decimal of 2 digits, 2 of them places": {"type": "string", "pattern": decimal(2, 2)},
    "Decimal of 5 digits": {"type": "string", "pattern": decimal(5, None)},
    "Decimal of 2 places": {"type": "string", "pattern": decimal(None, 2)},
    "Decimal of no places": {"type": "string", "pattern": decimal(None, 0)},
    "short HttpUrl": {"type": "string", "format": "uri", "minLength": 1, "maxLength": 20},
    "HttpUrl": {"type": "string", "format": "uri", "minLength": 1, "maxLength": 120},
    "set": {"type": "array", "items": {"type": "string", "enum": ["a", "b", 'c"']}, "uniqueItems": True, "maxItems": 2, "minItems": 1},
    "set of a ref": {"$defs": {"s": {"enum": ["a", "b"]}}, "type": "array", "items": {"$ref": "#/$defs/s"}, "uniqueItems": True},
    "set of one": {"type": "array", "items": SMALL, "uniqueItems": True, "maxItems": 1},
    "required beyond properties": {"type": "object", "properties": A, "required": ["a", "b"], "additionalProperties": {"type": "null"}},
    "required of anything": {"type": "object", "properties": A, "required": ["c"]},
}  # fmt: skip
REFUSED = {
    "not": {"type": "string", "not": {"const": "a"}},
    "whole numbers of const must fit into 64 bits": {"const": 2**63},
    "whole numbers of enum must fit into 64 bits": {"enum": [1, {"a": [-(2**63) - 1]}]},
    "if": {"type": "object", "properties": {**A, **B}, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "uniqueItems": {"type": "array", "items": SMALL, "uniqueItems": True},
    "contains": {"type": "array", "items": SMALL, "contains": {"const": 3}},
    "dependentRequired": {"type": "object", "properties": {**A, **B}, "dependentRequired": {"a": ["b"]}},
    "required beside allOf": {"required": ["a"], "allOf": [{"properties": A}]},
    "maxLength beside [$]ref": {"properties": {"a": {"$ref": "#/$defs/s", "maxLength": 3}}, "$defs": {"s": {"type": "string"}}},
    "properties beside anyOf": {"properties": A, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "isn't of the type": {"type": "integer", "enum": [1, True]},
    "minLength beside enum": {"enum": ["a"], "minLength": 3},
    "maxLength needs a type": {"maxLength": 3},
    "format 'json-pointer'": {"type": "string", "format": "json-pointer"},
    "JSON must escape": {"type": "string", "pattern": '^["]$|"'},
    "must escape": {"type": "string", "pattern": "^\\\\$"},
    "a look-around": {"type": "string", "pattern": "^(?=.*[0-9])[a-z0-9]{1,4}$"},
    "has a look-around": {"type": "string", "pattern": "^x(?<!y)z$"},
    "a back reference": {"type": "string", "pattern": r"^([ab])\1$"},
    "a word boundary": {"type": "string", "pattern": r"^a\b.$"},
    "which is not supported": {"type": "object", "patternProperties": {"[\\n]": SMALL}, "additionalProperties": False},
    "lacks": {"type": "object", "properties": A, "required": ["a", "b"], "additionalProperties": False},
    "propertyNames beside": {"type": "object", "properties": A, "propertyNames": {"maxLength": 2}},
    "might come twice": {"type": "object", "additionalProperties": SMALL, "minProperties": 2},
    "may hold for the same value": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "oneOf of what may hold": {"oneOf": [{"properties": A}, {"properties": B}]},
    "no schema in this one": {"$ref": "http://localhost/x"},
    "is no schema": {"$defs": {"s": {"$anchor": "foo"}}, "$ref": "#foo"},
    r"#/properties/a/anyOf/1: not": {"properties": {"a": {"anyOf": [{}, {"not": {}}]}}},
}  # fmt: skip
WARNED = {
    "allOf": {"allOf": [{"properties": A}, {"properties": B}]},
    "pattern combined": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
    "format combined": {"type": "string", "format": "email", "maxLength": 50},
    "multipleOf": {"type": "number", "multipleOf": 0.1},
    "ignoring multipleOf": {"type": "integer", "minimum": 0, "multipleOf": 7},
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory):
    compiler = GrammarCompiler(save(byte_level(), tmp_path_factory.mktemp("tokenizer")), VOCAB, [END], max_kept=2)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def checker():
    checker = SchemaChecker()
    yield checker
    checker.close()


@pytest.mark.parametrize("schema", HELD.values(), ids=HELD)
def test_whatever_is_said_validates(compiler, schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    process = compiler.acquire(compiler.compile(StructuredOutputs(json=schema)))
    said = [walk(process, seed) for seed in range(12)]
    compiler.release(process)
    for text in filter(None, said):
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert sum(text is not None for text in said) >= 6


NUMBERS = {
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "from 0": {"type": "integer", "minimum": 0},
    "from 5": {"type": "integer", "minimum": 5},
    "up to -250": {"type": "integer", "maximum": -250},
    "above 0": {"type": "number", "exclusiveMinimum": 0},
    "anything": {"type": ["number", "array"], "items": {"type": "integer"}},
}
STYLES = ("json", "qwen_xml", "minimax_xml", "minimax_m3_xml", "deepseek_xml", "glm_xml", "cohere_xml", "kimi_k3_xml", "deepseek_v4_1_xml")


def in_a_tag(schema: dict, style: str = "json") -> StructuredOutputs:
    format = {"type": "json_schema", "style": style, "json_schema": {"type": "object", "properties": {"a": schema}, "required": ["a"]}}
    tags = [{"type": "tag", "begin": "<call>", "content": format, "end": "</call>"}]
    dispatch = {"type": "triggered_tags", "triggers": ["<call>"], "tags": tags, "at_least_one": True, "stop_after_first": True}
    return StructuredOutputs(structural_tag={"type": "structural_tag", "format": dispatch})


def write_digits(process, start: str = "") -> str:
    """The text of a model that would always write another digit, and else goes on as soon as it can."""
    text = bytearray(start.encode())
    new = list(text)
    for _ in range(400):
        allowed = ask(process, "digits", new)
        ids = allowed_ids(allowed) & {*range(256)}
        if END in allowed_ids(allowed) and not ids & {*b"0123456789.e"}:
            process.forget("digits")
            return text.decode()
        number = [i for i in b"987654321.e0-" if i in ids]
        new = number[:1] or sorted(ids, key=lambda i: (i in b" \n\r\t", i in b',"', i))[:1]
        text += bytes(new)
    raise AssertionError(f"there is no end: {text[-60:]!r}")


@pytest.mark.parametrize("schema", NUMBERS.values(), ids=NUMBERS)
def test_numbers_without_bounds_end(compiler, schema):
    process = compiler.acquire(compiler.compile(StructuredOutputs(json=schema)))
    value = json.loads(write_digits(process))
    compiler.release(process)
    jsonschema.validate(value, schema)
    assert np.isfinite(float(value)) and abs(value) > 1e17


@pytest.mark.parametrize("schema", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("style", STYLES)
def test_numbers_inside_of_a_structural_tag_end(compiler, schema, style):
    process = compiler.acquire(compiler.compile(in_a_tag(schema, style)))
    text = write_digits(process, "<call>")
    compiler.release(process)
    assert text.endswith("</call>")
    found = [run for run in re.findall(r"\d+", text) if len(run) > 3]
    assert found and max(map(len, found)) == 19


WIDE = [
    str(2**63 - 1),
    str(-(2**63)),
    "0.1",
    "-1.7976931348623157e99",
    "3.141592653589793238",
    "4.9e-289",
    "9999999999999999999.9E+289",
    "1e05",
]


@pytest.mark.parametrize("number", WIDE)
@pytest.mark.parametrize("place", ["json", "structural_tag"])
def test_numbers_that_64_bits_hold_are_allowed(compiler, number, place):
    schema = {"type": "number" if {*number} & {*".eE"} else "integer"}
    wanted = in_a_tag(schema) if place == "structural_tag" else StructuredOutputs(json=schema)
    text = number if place == "json" else '<call>{"a": ' + number + "}</call>"
    process = compiler.acquire(compiler.compile(wanted))
    assert END in allowed_ids(ask(process, number, list(text.encode()))), text
    compiler.release(process)
    assert np.isfinite(float(number))


@pytest.mark.parametrize("pattern", ["^(0|[1-9][0-9]*)$", "^[0-9]+$", "^[1-9][0-9]*\\.[0-9]+[eE][+-]?[0-9]+$"])
def test_digits_of_patterns_and_of_other_grammars_stay_free(compiler, pattern):
    digits = "1234567890" * 4
    text = f"{digits}.{digits}e{digits}" if "e" in pattern else digits
    said = {
        f'"{text}"': StructuredOutputs(json={"type": "string", "pattern": pattern}),
        f'<call>{{"a": "{text}"}}</call>': in_a_tag({"type": "string", "pattern": pattern}),
        f"<call><parameter=a>{text}</parameter></call>": in_a_tag({"type": "string", "pattern": pattern}, "qwen_xml"),
    }
    for i, rule in enumerate(['("0") | ([1-9] [0-9]*)', "d+\nd ::= [0-9]", '"-"? [1-9] [0-9]* ("." [0-9]+)?']):
        schema, grammar = {"type": "json_schema", "json_schema": {"type": "integer"}}, {"type": "grammar", "grammar": f"root ::= {rule}"}
        both = {"type": "sequence", "elements": [schema, {"type": "const_string", "value": f"{i}:"}, grammar]}
        said[f"1{i}:{digits}"] = StructuredOutputs(structural_tag={"type": "structural_tag", "format": both})
    for text, wanted in said.items():
        process = compiler.acquire(compiler.compile(wanted))
        assert END in allowed_ids(ask(process, text, list(text.encode()))), text
        compiler.release(process)


def walk(process, seed: int) -> str | None:
    """A random text that the grammar allows; None if it is too long. Odd characters come as often as plain ones."""
    random, text = np.random.default_rng(seed), bytearray()
    new: list[int] = []
    for _ in range(300):
        allowed = ask(process, str(seed), new)
        ids = sorted(allowed_ids(allowed) & {*range(256), END} - {0xED})  # that begins surrogates, which XGrammar takes for characters
        if allowed.state == "done":
            return text.decode()
        quotes = [i for i in ids if i in (*b'"]}', END)] if random.random() < 0.2 else []  # or texts would seldom end
        new = [int(random.choice(quotes or ids))]
        if new == [END]:
            return text.decode()
        text += bytes(new)
    return None


@pytest.mark.parametrize(("words", "schema"), REFUSED.items(), ids=REFUSED)
def test_what_the_grammar_would_pass_over_is_refused(words, schema):
    with pytest.raises(RequestError, match=words) as error:
        StructuredOutputs(json=schema, strict=True)
    assert error.value.field == "structured_outputs.json"


@pytest.mark.parametrize("kind", ["json_schema", "qwen_xml_parameter"])
def test_schemas_inside_of_a_structural_tag_are_strict(kind):
    content = {"type": kind, "json_schema": {"type": "object", "properties": {"a": REFUSED["uniqueItems"]}}}
    tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": [{"type": "any_text"}, content]}}
    with pytest.raises(RequestError, match="uniqueItems is not supported") as error:
        StructuredOutputs(structural_tag=tag)
    assert error.value.field == "structured_outputs.structural_tag"


def test_schemas_inside_of_a_structural_tag_are_restated():
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": HELD["short HttpUrl"]}}
    [kind, text] = StructuredOutputs(structural_tag=tag).source()
    assert kind == "structural_tag" and "pattern" in json.loads(text)["format"]["json_schema"]


HOPELESS = ("whole numbers of const must fit into 64 bits", "whole numbers of enum must fit into 64 bits", "isn't of the type",
            "which is not supported", "lacks", "no schema in this one", "is no schema")  # fmt: skip
LOOSENED = {words: schema for words, schema in REFUSED.items() if words not in HOPELESS}


@pytest.mark.parametrize("words", HOPELESS)
def test_what_leaving_out_does_not_mend_is_always_refused(words):
    with pytest.raises(RequestError, match=words):
        StructuredOutputs(json=REFUSED[words])


@pytest.mark.parametrize("schema", LOOSENED.values(), ids=LOOSENED)
def test_what_no_grammar_says_is_checked_afterwards(compiler, checker, schema):
    """Texts that validate are among those written, and the checker's verdict is jsonschema's own."""
    wanted = StructuredOutputs(json=schema)
    process = compiler.acquire(compiler.compile(wanted))
    first = 100 * list(LOOSENED.values()).index(schema)  # some share a grammar, whose process knows what was said before
    said = [text for text in (walk(process, seed) for seed in range(first, first + 12)) if text is not None]
    compiler.release(process)
    checked = checker.prepare(wanted)
    assert json.loads(checked) == schema and said
    validator = jsonschema.Draft202012Validator(schema)
    for text in said:
        assert (checker.find_error(checked, text) is None) == validator.is_valid(json.loads(text))


def test_what_is_held_needs_no_check(checker):
    for schema in HELD.values():
        assert checker.prepare(StructuredOutputs(json=schema)) is None
    assert checker.prepare(StructuredOutputs(json=REFUSED["not"] | {"not": False})) is None
    assert checker.prepare(StructuredOutputs(regex="a")) is None


def test_errors_of_the_check_say_where_and_what(checker):
    schema = {"type": "object", "properties": {"ids": REFUSED["uniqueItems"]}}
    checked = checker.prepare(StructuredOutputs(json=schema))
    assert checker.find_error(checked, '{"ids": [1, 2, 1]}') == "at $.ids: [1, 2, 1] has non-unique elements"
    assert checker.find_error(checked, '{"ids": [1, 2]}') is None
    assert "is no JSON" in checker.find_error(checked, '{"ids": [1, 2')


def test_an_invalid_schema_is_refused_before_anything_is_generated(checker):
    with pytest.raises(RequestError, match="is no valid JSON schema") as error:
        checker.prepare(StructuredOutputs(json={"type": "string", "not": 5}))
    assert error.value.field == "structured_outputs.json"


def test_a_check_that_takes_for_ever_ends(checker):
    schema = {"type": "string", "not": {"pattern": "^(a+)+$"}}
    checked = checker.prepare(StructuredOutputs(json=schema))
    assert "took more than 2 s" in checker.find_error(checked, json.dumps("a" * 64 + "b"))
    assert checker.find_error(checked, json.dumps("b")) is None


def test_a_reference_is_never_fetched(checker):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        schema = {"type": "string", "not": {"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/x"}}
        checked = checker.prepare(StructuredOutputs(json=schema))
        assert "can't be checked" in checker.find_error(checked, '"a"')
        with pytest.raises(TimeoutError):
            server.accept()


def test_without_the_library_nothing_is_left_unchecked(checker, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="jsonschema"):
        checker.prepare(StructuredOutputs(json=REFUSED["uniqueItems"]))


@pytest.mark.parametrize(("words", "schema"), WARNED.items(), ids=WARNED)
def test_what_the_library_warns_of_is_refused(compiler, words, schema):
    with pytest.raises(RequestError, match=words):
        compiler.compile(StructuredOutputs(json=schema))


@pytest.mark.parametrize(("words", "schema"), WARNED.items(), ids=WARNED)
def test_what_the_library_warns_of_is_refused_inside_of_a_structural_tag(compiler, words, schema):
    for style in STYLES:
        with pytest.raises(RequestError, match=f"{words}|not support"):  # one style knows fewer keywords, and says so by itself
            compiler.compile(in_a_tag(schema, style))


def test_anchors_inside_of_a_structural_tags_expressions_are_refused(compiler):
    with pytest.raises(RequestError, match="in the middle"):
        compiler.compile(StructuredOutputs(structural_tag={"type": "structural_tag", "format": {"type": "regex", "pattern": "a^b"}}))


@pytest.mark.parametrize("fields", [{"json_object": True}, {"json": {"type": "object"}}, {"json": True}])
def test_any_json(compiler, fields):
    process = compiler.acquire(compiler.compile(StructuredOutputs(**fields)))
    values = [json.loads(text) for text in (walk(process, seed) for seed in range(20)) if text is not None]
    assert len(values) > 3 and ("json" in fields or all(isinstance(value, dict) for value in values))
    compiler.release(process)
