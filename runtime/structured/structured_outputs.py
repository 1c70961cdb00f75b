"""The form that a request's output must have, in vLLM's names."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from cupola.runtime.errors import RequestError
from cupola.runtime.structured.structural_tags import has_schema, parts_of

MAX_BYTES = 256 * 1024  # of a schema, a pattern, a grammar or all choices
MAX_DEPTH = 64  # levels of a schema
MAX_CHOICES = 4096
KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
Object = dict[str, Any]
MAX_LARK_CHARACTERS = 64 * 1024  # Lark takes some seconds to read as many


@dataclass(frozen=True)
class StructuredOutputs:
    """The form that the output must have. Exactly one field, beside `strict`, is given.

    Args:
        json: a JSON schema, as a dictionary, as a boolean or as JSON text; the output is JSON on one line that it validates.
        json_object: whether the output is any JSON object.
        regex: a regular expression that the whole output matches.
        choice: the output is one of these strings.
        grammar: a context-free grammar: in GBNF (llama.cpp's form of EBNF), whose first rule is called root; or in the form of the
            library Lark, whose first rule is called start (`lark_grammar.py` says what of it is supported).
        structural_tag: free text with JSON schemas inside of tags, as XGrammar's structural tags say, as a dictionary or as JSON text.
        strict: whether a schema is refused that a grammar can't hold the output to in full. Otherwise what no grammar can say, such as
            `uniqueItems`, is left out of it, and the output is to be checked when it is there: `checked_schema` says against what.
            The schemas inside of a structural tag are always strict.

    Raises:
        RequestError: naming the field and the fix. Whether the grammar itself is sound is only known when it is compiled.
    """

    json: str | Object | bool | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    structural_tag: str | Object | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.json_object, bool | None):
            raise RequestError(f"is {self.json_object!r:.60}", field="structured_outputs.json_object", fix="give true or false")
        if not isinstance(self.strict, bool):
            raise RequestError(f"is {self.strict!r:.60}", field="structured_outputs.strict", fix="give true or false")
        if len(self._given) != 1:
            what = f"has {' and '.join(self._given)}" if self._given else "is empty"
            raise RequestError(what, field="structured_outputs", fix=f"give exactly one of {', '.join(KINDS)}")
        text = self.source()[1]
        if len(text.encode()) > MAX_BYTES:
            raise RequestError(f"has {len(text.encode())} bytes", field=self.field, fix=f"give at most {MAX_BYTES}")

    @property
    def field(self) -> str:
        """The name of the given field, for errors."""
        return f"structured_outputs.{self._given[0]}"

    @property
    def _given(self) -> list[str]:
        return [name for name in KINDS if getattr(self, name) is not None and (name != "json_object" or self.json_object)]

    @property
    def checked_schema(self) -> str | None:
        """The JSON schema that the output must be checked against, as JSON text; None if the grammar holds the output to all of it."""
        if self.json is None or self.strict:
            return None
        text = _write_json(self.json, self.field, bool)
        return text if _restate(text, self.field, strict=False)[1] else None

    def source(self) -> tuple[str, str]:
        """How the grammar is written, "json", "regex", "grammar" or "structural_tag", and its text. Raises RequestError."""
        if self.choice is not None:
            return "grammar", _any_of(self.choice)
        if self.json_object:
            return "json", '{"type": "object", "additionalProperties": true}'
        if self.json is not None:
            return "json", _restate(_write_json(self.json, self.field, bool), self.field, strict=self.strict)[0]
        if self.structural_tag is not None:
            return "structural_tag", _restate_tag(_write_json(self.structural_tag, self.field), self.field)
        kind, text = ("regex", self.regex) if self.regex is not None else ("grammar", self.grammar)
        _check_string(text, self.field)
        assert text is not None
        if kind == "grammar":
            _check_grammar(text, self.field)
        return kind, text


def _check_grammar(text: str, field: str) -> None:
    from cupola.runtime.structured.lark_grammar import is_installed, is_lark  # here, since most who generate have no use for it

    if is_lark(text):
        if not is_installed():
            raise RequestError("is written as Lark's are, and the library lark isn't installed", field=field, fix="pip install lark")
        if len(text) > MAX_LARK_CHARACTERS:
            raise RequestError(f"has {len(text)} characters", field=field, fix=f"give at most {MAX_LARK_CHARACTERS} in Lark's form")


def _restate(text: str, field: str, *, strict: bool) -> tuple[str, list[str]]:
    """A schema that grammars can hold answers to, and what it leaves out, which is nothing if it is `strict`. Raises RequestError."""
    from cupola.runtime.structured.json_schema import SchemaError, check_schema, loosen_schema  # here as above
    from cupola.runtime.structured.json_schema_restate import restate_schema

    schema = restate_schema(json.loads(text))
    left_out = [] if strict else loosen_schema(schema)
    try:
        check_schema(schema)
    except SchemaError as error:
        raise RequestError(str(error), field=field, fix="leave it out, or say it another way") from None
    return json.dumps(schema, ensure_ascii=False), left_out


def _restate_tag(text: str, field: str) -> str:
    """A structural tag whose schemas grammars can hold answers to, and whose grammars can be read. Raises RequestError."""
    tag = json.loads(text)
    for part in parts_of(tag):
        if has_schema(part):
            if isinstance(part["json_schema"], dict | bool):
                part["json_schema"] = json.loads(_restate(json.dumps(part["json_schema"]), field, strict=True)[0])
        elif part.get("type") == "grammar" and isinstance(part.get("grammar"), str):
            _check_grammar(part["grammar"], field)
    return json.dumps(tag, ensure_ascii=False)


def _any_of(choices: Sequence[str]) -> str:
    field = "structured_outputs.choice"
    if not isinstance(choices, list | tuple) or not 0 < len(choices) <= MAX_CHOICES:
        size = f"has {len(choices)} strings" if isinstance(choices, list | tuple) else f"is {choices!r:.60}"
        raise RequestError(size, field=field, fix=f"give a list of 1 to {MAX_CHOICES} strings")
    for choice in choices:
        _check_string(choice, field)
    return "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices))


def _check_string(text: object, field: str) -> None:
    if not isinstance(text, str) or not text:
        raise RequestError(f"is {text!r:.60}", field=field, fix="give a string that isn't empty")
    if len(text) > MAX_BYTES:
        raise RequestError(f"has {len(text)} characters", field=field, fix=f"give at most {MAX_BYTES}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"has a lone surrogate at character {error.start}", field=field, fix="give valid Unicode text") from None


def _write_json(value: object, field: str, *others: type) -> str:
    """The value, or the value that a string holds, as JSON text, checked to be an object (or one of `others`) that isn't too deep."""
    if isinstance(value, str):
        _check_string(value, field)
    try:
        value = json.loads(value) if isinstance(value, str) else value
        if not isinstance(value, (dict, *others)):
            raise RequestError(f"is {value!r:.60}", field=field, fix="give a JSON object")
        _check_depth(value, field)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"is no JSON: {error!s:.100}", field=field, fix="give a JSON object") from None
    return text


def _check_depth(value: object, field: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise RequestError(f"is more than {MAX_DEPTH} levels deep", field=field, fix="make it flatter, with $ref for what recurs")


def _children(item: object) -> Collection[object]:
    return item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
