"""Grammars in Lark's form: what is said at random under them Lark accepts, and what Lark accepts may be said."""

from __future__ import annotations

import json
import re

import lark
import numpy as np
import pytest

import cupola.runtime.structured.structured_outputs
from cupola.runtime.errors import RequestError
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.grammar_process import GrammarProcess
from cupola.runtime.structured.lark_grammar import is_lark, replace_lark, write_gbnf
from cupola.runtime.structured.lark_ignored import MAX_IGNORED
from cupola.runtime.structured.regular_expressions import characters_of, parse
from cupola.runtime.structured.structured_outputs import MAX_LARK_CHARACTERS, StructuredOutputs
from tests.runtime.structured.test_grammar import END, VOCAB, allowed_ids, ask
from tests.runtime.tokenizers_for_tests import byte_level, save

CALCULATOR = """
    ?start: sum | NAME "=" sum -> assign_var
    ?sum: product | sum "+" product -> add | sum "-" product -> sub
    ?product: atom | product "*" atom -> mul | product "/" atom -> div
    ?atom: NUMBER -> number | "-" atom -> neg | NAME -> var | "(" sum ")"
    %import common.CNAME -> NAME
    %import common.NUMBER
    %import common.WS_INLINE
    %ignore WS_INLINE
"""
JSON = r"""
    ?start: value
    ?value: object | array | string
          | SIGNED_NUMBER -> number
          | "true" -> true
          | "false" -> false
          | "null" -> null
    array  : "[" [value ("," value)*] "]"
    object : "{" [pair ("," pair)*] "}"
    pair   : string ":" value
    string : ESCAPED_STRING
    %import common.ESCAPED_STRING
    %import common.SIGNED_NUMBER
    %import common.WS
    %ignore WS
"""
SQL = """
start: select_statement
select_statement: "SELECT" column "from" table "where" condition
column: "col_1" | "col_2"
table: "table_1" | "table_2"
condition: column "=" number
number: "1" | "2"
"""
PROGRAM = r"""
// Statements with comments between them.
start: statement+
statement: NAME "=" (NAME | INT | STRING) ";" | "if"i NAME? _block ["else" _block]
_block.2: "{" statement* "}"
NAME.1: ("a".."c" | "_") /[\w]{0,2}/
INT: "1".."9" DIGIT~0..2
STRING: "'" /[^'\n\\]/* "'"
%import common (DIGIT, WS, C_COMMENT, SH_COMMENT)
%ignore WS
%ignore C_COMMENT
%ignore SH_COMMENT
"""
CORPUS = {
    "calculator": (CALCULATOR, ["x=1", " 1 + 2*(3-x1)\t", "-- 1.5e-3", "", "1+", "(1", "x =\n1"]),
    "JSON": (JSON, [json.dumps({'a"\\': [1, -2.5e3, "é😀", {}, [], None]}), " [ ]\n", "[1,]", '{"a":}', '"a"b"', '"a\\"', "tru"]),
    "SQL": (SQL, ["SELECTcol_1fromtable_1wherecol_2=1", "SELECT col_1", ""]),
    "program": (
        PROGRAM,
        [
            "a=b; /* x */ iF _ { b = 'x' ; } else{}",
            "a=1;#c\n",
            "a=1;#c",
            "/**/a=1;",
            "a=0;",
            "abc=a;",
            "a=1;/* */ */",
            "a='x'#;",
            "a='x'#\n;",
            "a=1;#\n#",
        ],
    ),
    "comments before ends of lines": (
        'start: (NAME _NL)+\nNAME: /[a-z]+/\n_NL: /\\n+/\n%ignore /#.*/\n%ignore " "',
        ["a # b\nc\n", "a#b", "# a\nb\n", "a\n#", "a # \n"],
    ),
    "templates": (
        'start: _sep{item, ","} ";"\n_sep{x, y}: x (y x)*\nitem: "a" | _list{item}\n_list{x}: "(" _sep{x, " "} ")"',
        ["a,a;", "(a a),((a));", "a,;", "(a,a);"],
    ),
    "repetitions": (
        'start: "a"~2 ("b" | "c")~1..3 ["d"] ("e" "f")? "g"* "h"+ x~0..1\nx: "i"~0..60 "j"',
        ["aabh", "aacbcdefggghh", "aabhj", "aabh" + "i" * 60 + "j", "aabh" + "i" * 61 + "j", "abh", "aabbbbh", "aab"],
    ),
    "left, right and both": (
        'start: e\ne: e e | l | r | m\nl: l "a" | "b"\nr: "c" r | "d"\nm: "(" e? ")" | m "!"',
        ["baaa", "cccd", "()!!bd", "(bad)!", "a", "c", "(!"],
    ),
    "through each other": ('start: x\nx: y "a" | "b"\ny: x "c" | z\nz: x "d" | "e"', ["eaca", "bca", "bda", "ea", "ab"]),
    "what may be empty": ('start: a b c\na: "x"?\nb: a* "y"?\nc: | "z" c', ["", "xxxyzz", "y", "zx", "yx"]),
    "escapes and cases": (
        r'start: "\"\\\n\t\x41\u00e9" | "sTraße"i | "K"i "1" | /[k-m]/i | "é".."ü" | "\U0001F600"',
        ['"\\\n\tAé', "STRASSE", "straße", "STRAẞE", "ſtraße", "K1", "\u212a1", "L", "ê", "😀", "e"],
    ),
    "imports": (
        "%import common (INT, SIGNED_FLOAT, WORD, HEXDIGIT)\n%import common.NEWLINE -> NL\nstart: (INT | SIGNED_FLOAT | WORD) NL HEXDIGIT",
        ["12\nf", "-1.e+5\r\n\n0", "abc\nF", "12f", ".5\n1"],
    ),
    "overridden": ('%import common.INT\n%override INT: "1"\n%extend INT: "2" | "3"\nstart: INT+', ["123", "4", ""]),
    "spaces of its own": ('start: "a" WS? "b"\nWS: /[ \\t]/+', ["ab", "a  \tb", "a\nb"]),
    "names that are others'": ('start: root part\nroot: PART\npart: ignored /\\w-/\nignored: "a"\nPART: /\\w./', ["x.aé-", "x.é-"]),
    "nothing but what is ignored": ('start: "a"?\n%ignore " "\n%ignore /;;+/', ["", "  ", ";;;", ";", "a;; a", " a;; "]),
    "unused": ('start: "a"\nother: "b" loop\nloop: loop "c"\nLOOK: /(?=a)/', ["a", "b"]),
    "an end not everywhere": ('start: "a" | "b" loop | "c" start\nloop: "d" loop', ["a", "cca", "bd", "b"]),
    "inner flags": (r"start: /(?i:ab)c(?s:.)/ | /a b/x | /(?-i:k)./i", ["ABc\n", "abC\n", "ab", "k1", "K1"]),
    "strings": (
        r"""start: /"[^"]*?"/ | /'.*?'/ | /<!--.*?-->/s | /`.*?(?<!\\)`/ | S | /abab.*?ababc/
                    S: /\/.*?(?<!\\)(\\\\)*?\// | /!.+?!/""",
        [
            '"a"',
            '"a"b"',
            "'a'",
            "'a'b'",
            "''",
            "<!---->",
            "<!--->-\n-->",
            "<!---->-->",
            "`a`",
            "`\\``",
            "`\\\\`",
            "`\\\\",
            "``",
            "/a\\/b/",
            "/\\\\/",
            "/\\//",
            "/a/b/",
            "ababababc",
            "ababaababc",
            "ababababababc",
            "ababababcc",
            "!!!",
            "!!",
            "!a!",
        ],
    ),
}
PATTERNS = [
    r"a|b*c+|d?e{2}f{0,1}g{2,}h{1,3}i{0}",
    r"(?:ab|(cd)+)*x",
    r"[^a-z\]\\]{1,2}|[\-\^]",
    r"\d+\.\d+|\W\S|\D\s",
    r"\x41\u00e9\n\t\.\$|(é)",
    r"(((a*)*)*b?)+",
    r"(?i:straße|k[^k]|ſ)",
    r"(?s:a.)|b.",
    r"(ab+)?c|(b+a)?d|(a(b(c*)?)*)?e",
    r"\w{0,40}-|(a{0,20}b){1,20}",
    r"a|(a|ab)",
    r"(bc*|a){2,}",
    r"(a{1,200}|b+c{0,129})",
]
REFUSED = {
    "look-ahead": 'start: "a" X\nX: /b(?=c)/',
    "X, /": "start: X\nX: /a(?<=c)/",
    "negative look-ahead": "start: /(?!a)b/",
    "back reference": r"start: /(a|b)\1/",
    "condition on a group": r"start: /(a)?(?(1)b|c)/",
    "anchor": "start: /^a/",
    "word boundary": r"start: /a\b/",
    "atomic group": "start: /(?>a|b)c/",
    "possessive": "start: /a++/",
    "lazy repetition": "start: /a.*?b.*?c/",
    "lazy repetition is": 'start: A "b"\nA: /a.*?/',
    "lazy repetition is not supported": "start: /(ab)*?c/",
    "matches no character": r"start: /[^\s\S]/",
    "ud800": r'start: "\ud800"',
    "%import from python": "%import python.NAME\nstart: NAME",
    "%import from secrets": "%import .secrets.x\nstart: x",
    "%import from nowhere": "%import nowhere.x\nstart: x",
    "'NOPE' used but not defined": "%import common.NOPE\nstart: NOPE",
    "'b' used but not defined": 'start: "a" b',
    "only declared": '%declare X\nstart: "a" X',
    "no rule called start": 'begin: "a"',
    "start needs itself without end": 'start: "a" start',
    "Recursion in terminal": 'start: A\nA: "a" A',
    "may be empty": "start: A\nA: /a*/",
    "Bad Range": 'start: "a"~3..1',
    "line 1 column": "start: (",
    "defined more than once": 'start: "a"\nstart: "b"',
    "Aliasing not allowed in terminals": 'start: A\nA: "a" -> b',
    "Lark can't read it": "start: /(/",
    "nested too deeply": "start: " + "(" * 3000 + '"a"' + ")" * 3000,
    "is nested too deeply": "start: /" + "(" * 3000 + "a" + ")" * 3000 + "/",
}
ENORMOUS = {
    "optional parts": "start: " + " ".join(f'["{letter}"]' for letter in "abcdefghijklmnopqrstuvwxyz"),
    "templates": 'start: t{"a"}\nt{x}: t{u{x}}\nu{x}: x',
    "terminals": "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(60)) + '\nA60: "y"',
    "rules": "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(5000)) + '\nr5000: "y"',
    "bars": 'start: "a"' + "|" * (MAX_LARK_CHARACTERS - 20),
    "parentheses": "start: " + "(" * (MAX_LARK_CHARACTERS - 20),
    "new lines": 'start: "a"' + "\n" * (MAX_LARK_CHARACTERS - 20) + "x",
    "backslashes": 'start: "' + "\\\\" * 30_000 + '"',
    "repetitions of a rule": "start: a~1..100000\na: b~1..100000\nb: c~1..100000\nc: start | start start",
    "repetitions of a terminal": "start: A\nA: /((a{1,1000}){1,1000}){1,1000}/",
}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory):
    compiler = GrammarCompiler(save(byte_level(), tmp_path_factory.mktemp("tokenizer")), VOCAB, [END], max_seconds=1, max_kept=2)
    yield compiler
    compiler.close()


def lark_accepts(parser: lark.Lark, text: str) -> bool:
    try:
        parser.parse(text)
    except lark.exceptions.LarkError:
        return False
    return True


def accepts(process: GrammarProcess, text: str) -> bool:
    found = ask(process, "text", list(text.encode()))
    process.forget("text")
    return found.state != "stuck" and END in allowed_ids(found)


def walk(process: GrammarProcess, seed: int) -> str | None:
    """A random text that the grammar allows; None if it is too long. What ends things comes often, and odd characters seldom."""
    random, text = np.random.default_rng(seed), bytearray()
    allowed = ask(process, "walk", [])
    while allowed.state == "open" and len(text) < 150:
        ids = sorted(allowed_ids(allowed) & {*range(256), END})
        plain = [i for i in ids if 32 < i < 127 and i not in b"#/"]
        ends = [i for i in ids if i in {*b"\"'`)}];>!/\n"}] if random.random() < 0.25 else []
        if END in ids and random.random() < 0.3:
            break
        ids = [i for i in ids if i != END]
        text.append(int(random.choice(ends or (plain if plain and random.random() < 0.9 else ids))))
        allowed = ask(process, "walk", [text[-1]])
    process.forget("walk")
    return text.decode() if END in allowed_ids(allowed) else None


def spoil(text: str, random: np.random.Generator) -> str:
    """The text with a character left out, put in, or replaced by another."""
    at, others = int(random.integers(len(text) + 1)), [*text, *'a1 ("\n']
    put = str(random.choice(others)) if random.random() < 0.7 else ""
    return text[:at] + put + text[at + int(random.integers(2)) :]


@pytest.mark.parametrize("name", CORPUS)
def test_the_same_texts_are_accepted_as_by_lark(compiler, name):
    grammar, texts = CORPUS[name]
    parser = lark.Lark(grammar, parser="earley", lexer="dynamic_complete")
    process = compiler.acquire(compiler.compile(StructuredOutputs(grammar=grammar)))
    said = [text for text in (walk(process, seed) for seed in range(50)) if text is not None]
    assert len(said) >= 8 and all(lark_accepts(parser, text) for text in said)
    random = np.random.default_rng(0)
    for text in [*texts, *(spoil(text, random) for text in [*said, *texts] for _ in range(4))]:
        assert accepts(process, text) == lark_accepts(parser, text), text
    compiler.release(process)
    assert len({lark_accepts(parser, text) for text in texts}) == 2, "some of the texts are right, and some wrong"


@pytest.mark.parametrize("grammar", [CALCULATOR, JSON, SQL], ids=["calculator", "JSON", "SQL"])
def test_where_only_the_longest_match_counts_the_same_is_accepted(compiler, grammar):
    """Lark's default, "dynamic", tries no shorter match of a terminal; grammars such as these need none."""
    parser = lark.Lark(grammar, parser="earley")
    process = compiler.acquire(compiler.compile(StructuredOutputs(grammar=grammar)))
    said = [text for text in (walk(process, seed) for seed in range(100, 130)) if text is not None]
    compiler.release(process)
    assert said and all(lark_accepts(parser, text) for text in said)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_terminals_are_what_re_matches_in_full(compiler, pattern):
    process = compiler.acquire(compiler.compile(StructuredOutputs(grammar=f"start: /x{pattern}/ | /{pattern}y/ | /({pattern})z/")))
    said = [text for text in (walk(process, seed) for seed in range(40)) if text is not None]
    random = np.random.default_rng(0)
    full = re.compile(f"x{pattern}|{pattern}y|({pattern})z")
    for text in [*said, *(spoil(text, random) for text in said for _ in range(4))]:
        assert accepts(process, text) == bool(full.fullmatch(text)), text
    compiler.release(process)
    assert len(said) >= 10


@pytest.mark.parametrize(
    "pattern",
    [
        r"\w",
        r"\S",
        r"[^\W\d_]",
        r"(?a:\w)",
        r"(?a:[^\s])",
        ".",
        "(?s:.)",
        r"[\d\-é-ü]",
        "[^a]",
        "(?i:[^k-m])",
        "(?i:k)",
        "(?ai:k)",
        "(?i:ß)",
        "(?i:[α-ωſ])",
        "(?i:İ)",
        "(?i:ǆ)",
        "a|[b-d]|(e)",
    ],
)
def test_classes_hold_the_characters_that_re_says(pattern):
    items, flags = parse(f"(?:{pattern})")
    found = {code for first, last in characters_of(items[0], flags) for code in range(first, last + 1)}
    everything = list(map(chr, (*range(0xD800), *range(0xE000, 0x20000), 0xE0001, 0x10FFFF)))  # no case or category changes past it
    assert {chr(code) for code in found}.intersection(everything) == {one for one in everything if re.match(pattern, one)}


def test_what_is_ignored_comes_to_an_end(compiler):
    process = compiler.acquire(compiler.compile(StructuredOutputs(grammar=CALCULATOR)))
    for spaces in (0, 1, MAX_IGNORED, MAX_IGNORED + 1):
        for text in (" " * spaces + "1", "1" + " " * spaces + "+ 1", "1" + " " * spaces):
            assert accepts(process, text) == (spaces <= MAX_IGNORED)
    compiler.release(process)


@pytest.mark.parametrize(("words", "grammar"), REFUSED.items(), ids=REFUSED)
def test_what_lark_or_gbnf_can_not_take_is_refused_by_name(compiler, words, grammar):
    with pytest.raises(RequestError) as error:
        compiler.compile(StructuredOutputs(grammar=grammar))
    assert words in str(error.value) and error.value.field == "structured_outputs.grammar" and len(str(error.value)) < 400
    str(error.value).encode()


@pytest.mark.parametrize("grammar", ENORMOUS.values(), ids=ENORMOUS)
def test_what_means_too_much_ends_in_time(compiler, grammar):
    """Refused, or used if that is possible within a second of processor time; and nobody else notices."""
    try:
        compiler.compile(StructuredOutputs(grammar=grammar))
    except RequestError as error:
        assert error.field == "structured_outputs.grammar" and len(str(error)) < 400
    compiler.compile(StructuredOutputs(choice=["still", "here"]))


def test_lark_in_a_structural_tag(compiler):
    numbers = 'start: "<" INT ("," INT)* ">"\n%import common.INT'
    tag = {"type": "sequence", "elements": [{"type": "const_string", "value": "a"}, {"type": "grammar", "grammar": numbers}]}
    process = compiler.acquire(compiler.compile(StructuredOutputs(structural_tag={"type": "structural_tag", "format": tag})))
    assert accepts(process, "a<1,23>") and not accepts(process, "a<1,>")
    compiler.release(process)


def test_what_a_schema_in_a_structural_tag_holds_is_no_grammar():
    value = {"type": "grammar", "grammar": 'start: "a"'}
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"const": value}}}
    assert json.loads(replace_lark("structural_tag", json.dumps(tag))) == tag


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('start: "a"', True),
        ('\n   ?start.2: "::=" x\n', True),
        ('!?start: "a"', True),
        ('_sep{x, y}: x (y x)*\nstart: _sep{"a", "b"}', True),
        ("// root ::= x\nstart : /a/", True),
        ('root ::= "a"', False),
        ('root ::= "start: b" "\\n"\nb ::= "x"', False),
        ('  root ::= x\nx ::=\n  "a: b"', False),
        ("root :=", False),
        ("nothing", False),
    ],
)
def test_larks_form_is_told_from_gbnf(text, expected):
    assert is_lark(text) is expected


def test_a_long_grammar_is_refused_at_once():
    with pytest.raises(RequestError, match=f"at most {MAX_LARK_CHARACTERS} in Lark's form") as error:
        StructuredOutputs(grammar='start: "a"\n' + "\n" * MAX_LARK_CHARACTERS)
    assert error.value.field == "structured_outputs.grammar"


@pytest.mark.parametrize("field", ["grammar", "structural_tag"])
def test_without_the_library_the_error_says_how_to_get_it(monkeypatch, field):
    monkeypatch.setattr(cupola.runtime.structured.lark_grammar, "is_installed", lambda: False)
    text = 'start: "a"'
    tag = {"type": "structural_tag", "format": {"type": "grammar", "grammar": text}}
    with pytest.raises(RequestError, match="pip install lark") as error:
        StructuredOutputs(**{field: text if field == "grammar" else tag})
    assert error.value.field == f"structured_outputs.{field}"


def test_a_terminal_is_one_expression_with_what_is_ignored_before_it():
    """Or tokens that begin with a space would have to be tried one by one."""
    assert sorted(write_gbnf('start: /b+/ x\nx: "c"\n%ignore " "').splitlines()) == [
        f'C_3 ::= Regex("(([\\\\u0020]()){{0,{MAX_IGNORED}}})([c])()")',
        f'__ANON_0_1 ::= Regex("(([\\\\u0020]()){{0,{MAX_IGNORED}}})(([b])+)()")',
        f"ignored. ::= ([\\u0020]){{0,{MAX_IGNORED}}}",
        "root ::= start_0 ignored. ",
        "start_0 ::= __ANON_0_1 x_2",
        "x_2 ::= C_3",
    ]
