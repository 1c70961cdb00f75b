"""Patterns of JSON schemas: what the grammar allows is what `re` matches in whole, but for what JSON must escape."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cupola.runtime.errors import RequestError
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.grammar_process import wait
from cupola.runtime.structured.json_schema_pattern import PatternError, rewrite_patterns, write_pattern
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from tests.runtime.structured.test_grammar import END, VOCAB, allowed_ids, ask
from tests.runtime.structured.test_json_schema import in_a_tag
from tests.runtime.tokenizers_for_tests import byte_level, save

TEXTS = ["".join(letters) for size in range(5) for letters in itertools.product("abc", repeat=size)]
ODD = ["é", "\u00a0", "\u0660", "\u2028", "😀", "^", "-", "]", "?", "a?", "(", '"', "\\", "\n", "\x07", "\x7f"]
ATOMS = ["a", "b", "c", "ab", ".", "[ab]", "[^a]", "[a?]", r"\?", r"[^-(]", "()", "(?:)", "é"]
QUANTIFIERS = ["?", "*", "+", "{0,1}", "{2}", "{1,2}", "{0,}", "{1,}", "{2,}"]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory):
    compiler = GrammarCompiler(save(byte_level(), tmp_path_factory.mktemp("tokenizer")), VOCAB, [END], max_kept=2)
    yield compiler
    compiler.close()


def quantified(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.tuples(st.sampled_from(["(", "(?:"]), inner, st.just(")"), st.sampled_from(QUANTIFIERS), st.sampled_from(["", "?"]))
    return st.one_of(group.map("".join), st.tuples(inner, inner).map("".join), st.tuples(inner, inner).map("({0[0]}|{0[1]})".format))


PATTERNS = st.tuples(
    st.sampled_from(["^", ""]), st.recursive(st.sampled_from(ATOMS), quantified, max_leaves=8), st.sampled_from(["$", ""])
).map("".join)


def find_allowed(compiler: GrammarCompiler, wanted: StructuredOutputs, texts: list[str], frame: str = '"{}"') -> set[str]:
    """Those of the texts with which the output, `frame` around them, may end."""
    process = compiler.acquire(compiler.compile(wanted))
    process.ask([(text, list(frame.format(text).encode()), []) for text in texts])
    while not (answers := process.poll()):
        assert process.failure is None, process.failure
        wait([process], 5)
    for text in texts:
        process.forget(text)
    compiler.release(process)
    return {text for text in texts if answers[text].state != "stuck" and END in allowed_ids(answers[text])}


@given(PATTERNS)
@example("^(ab+)?c$")  # XGrammar 0.2.8 takes "bc" for one of these,
@example("(a|b+)?c?")
@example("^(bc*|a){2,}$")  # "bacb"
@example("^(ab?|c){1,}?$")
@example("(a|(a|ab))")  # "abb"
@example("(a{129,}|b)")  # "aab"
@example("b*a{0,129}")
@example("^a|b$")
def test_a_pattern_allows_what_it_matches_in_whole(compiler, pattern):
    allowed = find_allowed(compiler, StructuredOutputs(json={"type": "string", "pattern": pattern}), TEXTS + ODD)
    assert allowed == {text for text in TEXTS + ODD if re.fullmatch(pattern, text) and stands_as_it_is(text)}


def stands_as_it_is(text: str) -> bool:
    return json.dumps(text, ensure_ascii=False) == f'"{text}"'


FRAMES = {"json": '<call>{{"a": "{}"}}</call>', "qwen_xml": "<call><parameter=a>{}</parameter></call>"}


@pytest.mark.parametrize("style", FRAMES)
@pytest.mark.parametrize("pattern", ["^(ab+)?c$", "^(bc*|a){2,}$", r"^[\^?a]{2,}(|b)$", "^(a|())+é?$"])
def test_patterns_inside_of_a_structural_tag(compiler, pattern, style):
    texts = [text for text in TEXTS + ODD if text != "\n"]  # which may always stand before XML's values
    allowed = find_allowed(compiler, in_a_tag({"type": "string", "pattern": pattern}, style), texts, FRAMES[style])
    assert allowed == {text for text in texts if re.fullmatch(pattern, text)}


def test_patterns_of_names(compiler):
    schema = {"type": "object", "patternProperties": {"^(ab+)?c$": {"const": 1}}, "additionalProperties": False}
    allowed = find_allowed(compiler, StructuredOutputs(json=schema), TEXTS, '{{"{}": 1}}')
    assert allowed == {text for text in TEXTS if re.fullmatch("(ab+)?c", text)}


@pytest.mark.parametrize("pattern", [".", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"[^\d]", r"[^\W]", r"[\W\d]", "(?i)k", "(?i)[^k]"])
def test_a_class_means_what_ecmascript_and_python_say(compiler, pattern):
    texts = [chr(code) for code in (*range(0x180), 0x660, 0x2003, 0x2028, 0x212A, 0x3001, 0x4E00, 0x1D7CE, 0x1F600)]
    both = {text for text in texts if re.fullmatch(pattern, text) and re.fullmatch(pattern, text, re.ASCII) and stands_as_it_is(text)}
    assert find_allowed(compiler, StructuredOutputs(json={"type": "string", "pattern": pattern}), texts) == both


@pytest.mark.parametrize(
    ("kind", "wanted"), [("json", {"type": "string", "pattern": "^[^,]{2}.$"}), ("grammar", 'start: /"[^,]{2}./')], ids=["json", "Lark"]
)
def test_bytes_that_are_no_character_are_never_allowed(compiler, kind, wanted):
    process = compiler.acquire(compiler.compile(StructuredOutputs(**{kind: wanted})))
    for first, (low, high) in {0xC2: (0x80, 0xBF), 0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}.items():
        allowed = ask(process, str(first), [ord('"'), first])
        assert allowed_ids(allowed) & {*range(256)} == {*range(low, high + 1)}
    assert not allowed_ids(ask(process, "", [ord('"')])) & {*range(0x80, 0xC2), *range(0xF5, 0x100)}
    compiler.release(process)


def test_characters_to_escape_stay_out_of_what_is_counted_often(compiler):
    texts = ["x" * 140, "x" * 201, '"' * 140, "\n" * 140, "\\" * 140, "😀" * 130]
    wanted = StructuredOutputs(json={"type": "string", "pattern": "^[^,]{130,200}$"})  # a rule of its own, of which XGrammar forgets it
    assert find_allowed(compiler, wanted, texts) == {"x" * 140, "😀" * 130}


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"^[\w-.]+$", ["a-.b"]),
        (r"^\d-\d$", ["1-2"]),
        (r"^(?<year>\d{4})\-(?<month>\d\d)$", ["2024-05"]),
        (r"^\(?<?[(?<a]$", ["(<a", "?", "("]),
        (r"^\/[\/@#]$", ["/@"]),
        (r"[[a]", ["[", "a"]),
    ],
)
def test_what_ecmascript_and_python_write_differently_is_read(compiler, pattern, texts):
    assert find_allowed(compiler, StructuredOutputs(json={"type": "string", "pattern": pattern}), [*texts, "x\\x"]) == {*texts}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a(?=b)", "look-ahead"),
        ("(?<!a)b", "negative look"),
        (r"(a)\1", "back reference"),
        (r"\bword", "word boundary"),
        ("(a^)b", "anchor"),
        ("(a$)+", "anchor"),
        ("a++", "possessive"),
        (r"a\n", "JSON must escape"),
        ("(", "unterminated"),
        ("a{99999999999}", "too large"),
        ("(" * 9000, "can't be used"),
    ],
)
def test_what_can_not_be_written_is_refused_by_name(pattern, words):
    with pytest.raises(PatternError, match=words) as error:
        write_pattern(pattern)
    assert len(str(error.value)) < 200


def test_names_that_would_become_one_are_refused():
    with pytest.raises(PatternError, match="the same"):
        rewrite_patterns({"patternProperties": {"a": {}, "^a$": {"type": "null"}}})


def test_the_reason_is_told(compiler):
    with pytest.raises(RequestError, match="a possessive repetition is not supported"):
        compiler.compile(StructuredOutputs(json={"type": "string", "pattern": "^a++"}))
