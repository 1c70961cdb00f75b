"""Structured output by the parts that make it: what may be asked for, vocabularies, grammar processes and their limits."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from transformers import PreTrainedTokenizerFast

import cupola.runtime.structured.grammar
from cupola.runtime.errors import EngineError, RequestError
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.grammar_process import Allowed, GrammarProcess, wait
from cupola.runtime.structured.structured_outputs import MAX_BYTES, MAX_CHOICES, MAX_DEPTH, StructuredOutputs
from cupola.runtime.text.detokenizer import Detokenizer
from cupola.runtime.text.tokenizer import Tokenizer
from tests.runtime.tokenizers_for_tests import byte_fallback, byte_level, save
from tests.systems import needs

VOCAB = 300  # past the tokenizer's
END = 261
ANY_TEXT = {"type": "structural_tag", "format": {"type": "any_text"}}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(byte_level(), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def compiler(tokenizer_file):
    compiler = GrammarCompiler(tokenizer_file, VOCAB, [END], max_seconds=1, max_kept=4)
    yield compiler
    compiler.close()


def ask(process: GrammarProcess, name: str, token_ids: list[int]) -> Allowed:
    process.ask([(name, token_ids, [])])
    while not (answers := process.poll()):
        assert process.failure is None, process.failure
        wait([process], 5)
    return answers[name]


def allowed_ids(allowed: Allowed) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(np.frombuffer(allowed.mask, np.uint8), bitorder="little")).tolist())


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({}, "structured_outputs", "empty"),
        ({"json": {}, "regex": "a"}, "structured_outputs", "exactly one"),
        ({"json_object": False}, "structured_outputs", "empty"),
        ({"json_object": 1}, "structured_outputs.json_object", "true or false"),
        ({"json": [1]}, "structured_outputs.json", "object"),
        ({"json": "{"}, "structured_outputs.json", "JSON"),
        ({"json": "[" * 30_000}, "structured_outputs.json", "JSON"),
        ({"json": {"const": float("nan")}}, "structured_outputs.json", "JSON"),
        ({"json": {"const": object()}}, "structured_outputs.json", "JSON"),
        ({"json": {"const": "\ud800"}}, "structured_outputs.json", "JSON"),
        ({"json": {"enum": [f"value {i}" for i in range(100_000)]}}, "structured_outputs.json", str(MAX_BYTES)),
        ({"structural_tag": True}, "structured_outputs.structural_tag", "object"),
        ({"regex": ""}, "structured_outputs.regex", "empty"),
        ({"regex": 1}, "structured_outputs.regex", "string"),
        ({"regex": "\ud800"}, "structured_outputs.regex", "surrogate"),
        ({"regex": "a" * (MAX_BYTES + 1)}, "structured_outputs.regex", str(MAX_BYTES)),
        ({"grammar": "é" * (MAX_BYTES - 10)}, "structured_outputs.grammar", str(MAX_BYTES)),
        ({"choice": []}, "structured_outputs.choice", "list"),
        ({"choice": "yes"}, "structured_outputs.choice", "list"),
        ({"choice": ["a", ""]}, "structured_outputs.choice", "empty"),
        ({"choice": ["a"] * (MAX_CHOICES + 1)}, "structured_outputs.choice", str(MAX_CHOICES)),
    ],
)
def test_what_can_be_seen_to_be_wrong_is_refused_at_once(fields, field, words):
    with pytest.raises(RequestError, match=words) as error:
        StructuredOutputs(**fields)
    assert error.value.field == field


def test_a_schema_has_an_end_to_its_depth():
    def nested(num_levels: int) -> dict:
        schema: dict = {}
        for _ in range(num_levels - 1):
            schema = {"items": schema}
        return schema

    StructuredOutputs(json=nested(MAX_DEPTH))
    with pytest.raises(RequestError, match="levels deep"):
        StructuredOutputs(json=nested(MAX_DEPTH + 1))


TOKENIZER_INFO = """
import json, sys
from pathlib import Path
from cupola.runtime.structured.xgrammar_library import Vocabulary
file, size, stops = sys.argv[1:]
print(Vocabulary(Path(file), int(size), json.loads(stops), with_special_tokens=True).to_json())
for name in ("torch", "transformers", "xgrammar"):
    assert not sys.modules.get(name), name
"""


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte-level", "byte-fallback"])
@pytest.mark.parametrize("extra", [-3, 0, 39], ids=["narrower", "as wide", "padded"])
def test_vocabularies_are_what_xgrammar_makes_of_transformers_tokenizers(tokenizer, extra, tmp_path):
    import xgrammar

    tokenizer.add_tokens(["<tool>", "\n\n"])
    file, size = save(tokenizer, tmp_path), tokenizer.get_vocab_size() + extra
    stops = [tokenizer.token_to_id("<end>")]
    expected = xgrammar.TokenizerInfo.from_huggingface(
        PreTrainedTokenizerFast(tokenizer_file=str(file)), vocab_size=size, stop_token_ids=stops
    )
    command = [sys.executable, "-c", TOKENIZER_INFO, str(file), str(size), json.dumps(stops)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == json.loads(expected.serialize_json())


def test_masks_follow_the_grammar_token_by_token(compiler):
    process = compiler.acquire(compiler.compile(StructuredOutputs(choice=["the", "thou", 'he"\n'])))
    t, h, e, he = ord("t") + 0, ord("h"), ord("e"), 257
    assert allowed_ids(ask(process, "a", [])) == {t, h, he}
    assert allowed_ids(ask(process, "b", [he])) == {ord('"')}
    assert allowed_ids(ask(process, "a", [t, h])) == {e, ord("o")}
    done = ask(process, "a", [e])
    assert done.state == "done" and allowed_ids(done) == {END}
    assert ask(process, "b", [ord("x")]).state == "stuck"
    compiler.release(process)


@pytest.mark.parametrize("choice", ['q"uote', "back\\slash", "line\nend\ttab", "\x00\x07\x7f\u2028", "ü😀", "a|b) ::= c"])
def test_choices_are_taken_literally(compiler, choice, tokenizer_file):
    process = compiler.acquire(compiler.compile(StructuredOutputs(choice=[choice, "zz"])))
    for i, token_id in enumerate(ids := byte_level().encode(choice, add_special_tokens=False).ids):
        assert token_id in allowed_ids(ask(process, "a", ids[i - 1 : i] if i else []))
    assert ask(process, "a", ids[-1:]).state == "done"
    compiler.release(process)


@pytest.mark.parametrize(("kind", "is_text"), [("regex", False), ("structural_tag", True)])
def test_special_tokens_are_text_only_where_a_structural_tag_may_want_them(kind, is_text, tmp_path):
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<think>"])
    tokenizer.add_tokens(["<tool>"])
    compiler = GrammarCompiler(save(tokenizer, tmp_path), VOCAB, [END])
    grammar = StructuredOutputs(regex=".*") if kind == "regex" else StructuredOutputs(structural_tag=ANY_TEXT)
    process = compiler.acquire(compiler.compile(grammar))
    ids = allowed_ids(ask(process, "a", []))
    assert (tokenizer.token_to_id("<think>") in ids) is is_text
    assert {ord("a"), END, tokenizer.token_to_id("<tool>")} <= ids
    assert not {*range(tokenizer.get_vocab_size(), VOCAB)} & ids
    compiler.release(process)
    compiler.close()


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_fallback()], ids=["byte-level", "byte-fallback"])
def test_what_the_grammar_has_seen_is_what_the_detokenizer_says(tokenizer, tmp_path):
    """Of random tokens, among them ones that hold half a character, added ones and special ones."""
    tokenizer.add_special_tokens(["<think>"])
    tokenizer.add_tokens(["<tool>", "the é"])
    file, pattern = save(tokenizer, tmp_path), "( ?[a-zé😀你<>]){8,40}"
    compiler = GrammarCompiler(file, 350, [tokenizer.token_to_id("<end>")])
    process = compiler.acquire(compiler.compile(StructuredOutputs(regex=pattern)))
    prompt = Tokenizer(file).encode("once", max_tokens=10)
    for seed in range(20):
        random, said, new = np.random.default_rng(seed), Detokenizer(Tokenizer(file), prompt), []
        while (allowed := ask(process, str(seed), new)).state == "open":
            ids = sorted(allowed_ids(allowed))
            new = [int(random.choice([i for i in ids if i > 255] or ids))] if random.random() < 0.5 else [int(random.choice(ids))]
            if tokenizer.token_to_id("<end>") in new:
                break
            said.push(new[0], check_stop=False)
        said.finish()
        assert allowed.state != "stuck" and re.fullmatch(pattern, said.released), said.released
    compiler.release(process)
    compiler.close()


NASTY = {
    "parentheses": {"regex": "(" * 30_000 + "a" + ")" * 30_000},
    "parentheses in a grammar": {"grammar": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "no grammar": {"grammar": "root :="},
    "no such rule": {"grammar": 'root ::= "a" x'},
    "endless rule": {"grammar": "root ::= a\na ::= root"},
    "lookahead": {"regex": "(?=a)b"},
    "refers to itself": {"json": {"$ref": "#"}},
    "refer to each other": {"json": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
    "never": {"json": False},
    "empty enum": {"json": {"enum": []}},
    "empty range": {"json": {"type": "integer", "minimum": 5, "maximum": 3}},
    "empty length": {"json": {"type": "string", "minLength": 5, "maxLength": 3}},
    "needs what never is": {"json": {"type": "object", "properties": {"a": False}, "required": ["a"]}},
    "no such type": {"json": {"type": "nothing"}},
}
HUGE = pytest.param({"json": {"const": "x" * 250_000}}, id="long constant", marks=needs("limits of memory"))


@pytest.mark.parametrize("fields", [*(pytest.param(fields, id=name) for name, fields in NASTY.items()), HUGE])
def test_a_grammar_that_can_not_be_used_is_refused_in_time(compiler, fields):
    with pytest.raises(RequestError, match="can't be used") as error:
        compiler.compile(StructuredOutputs(**fields))
    assert str(error.value.field).startswith("structured_outputs.") and len(str(error.value)) < 400
    compiler.compile(StructuredOutputs(choice=["still", "here"]))


SLOW = {"slow to match": {"regex": "((a{1,100}){1,100}){1,100}"}, "slower and slower": {"regex": "(.*)*(.*)*(.*)*x"}}


@pytest.mark.parametrize("fields", SLOW.values(), ids=SLOW)
def test_a_grammar_that_takes_too_long_to_match_ends_alone(compiler, fields):
    slow = compiler.acquire(compiler.compile(StructuredOutputs(**fields)))
    other = compiler.acquire(compiler.compile(StructuredOutputs(regex="[ab]*")))
    slow.ask([("a", [ord("a")] * 3000, [])])
    while slow.failure is None:
        assert ord("b") in allowed_ids(ask(other, "b", [ord("a")]))
        slow.poll()
    assert "too much time" in slow.failure
    for process in (slow, other):
        compiler.release(process)


def test_a_flood_of_grammars_keeps_few(compiler):
    for i in range(40):
        compiler.compile(StructuredOutputs(choice=[f"choice {i}"]))
    assert len(compiler._kept) <= 4


def test_grammars_compile_in_several_threads(compiler):
    found = []
    grammars = [StructuredOutputs(regex=f"[a-z]{{{i % 5 + 1}}}") for i in range(20)]
    threads = [threading.Thread(target=lambda grammar: found.append(compiler.compile(grammar)), args=(grammar,)) for grammar in grammars]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and len(set(found)) == 5


def test_a_killed_server_is_started_again(compiler):
    compiler.compile(StructuredOutputs(choice=["before"]))
    compiler._server.close()
    process = compiler.acquire(compiler.compile(StructuredOutputs(choice=["after"])))
    assert ask(process, "a", []).state == "open"
    compiler.release(process)


def dead_process(source: bytes) -> GrammarProcess:
    """A grammar's process that somebody has killed."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return GrammarProcess(source, ours)


def test_a_killed_process_is_not_the_grammars_fault(compiler, monkeypatch):
    opened, open_one = [], compiler._server.open

    def open_after_one_dead(source: bytes) -> GrammarProcess:
        opened.append(source)
        return open_one(source) if opened[1:] else dead_process(source)

    monkeypatch.setattr(compiler._server, "open", open_after_one_dead)
    assert compiler.compile(StructuredOutputs(choice=["killed once"])) and len(opened) == 2
    monkeypatch.setattr(compiler._server, "open", dead_process)
    with pytest.raises(RequestError, match="too much time or memory"):  # who dies twice at once does it by itself
        compiler.compile(StructuredOutputs(choice=["killed for ever"]))


def test_a_stopped_server_is_replaced_and_a_machine_that_never_answers_is_no_bad_request(compiler, monkeypatch):
    compiler.compile(StructuredOutputs(choice=["before it stops"]))
    monkeypatch.setattr(cupola.runtime.structured.grammar, "MAX_WAIT_SECONDS", 0.05)
    for server in vocabulary_holders():
        server.suspend()
    with pytest.raises(EngineError, match="in time"):
        monkeypatch.setattr(GrammarProcess, "compiling", property(lambda _: True))  # however fast the second one is
        compiler.compile(StructuredOutputs(choice=["while it stands"]))
    monkeypatch.undo()
    assert compiler.compile(StructuredOutputs(choice=["after it was replaced"]))


def test_idle_processes_end(tokenizer_file):
    compiler = GrammarCompiler(tokenizer_file, VOCAB, [END], max_kept=4, idle_seconds=0.2)
    before = set(vocabulary_holders())
    for _ in range(2):  # and start again
        process = compiler.acquire(compiler.compile(StructuredOutputs(choice=["a"])))
        assert ask(process, "a", []).state == "open"
        own = getattr(process._connection, "process", None)  # where nothing is forked, it holds a vocabulary itself
        idle = {holder for holder in vocabulary_holders() if own is None or holder.pid != own.pid} - before
        _, alive = psutil.wait_procs(idle, timeout=60)
        assert not alive
        process.forget("a")
        assert ask(process, "b", []).state == "open"  # who is in use goes on
        compiler.release(process)
    compiler.close()


def vocabulary_holders() -> list[psutil.Process]:
    """This process's children that grammars' processes are forked from."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE and "cupola.runtime.structured.grammar_worker" in child.cmdline():
                found.append(child)
    return found


HOLDS_A_GRAMMAR = """
import sys, time
from pathlib import Path
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.structured_outputs import StructuredOutputs
compiler = GrammarCompiler(Path(sys.argv[1]), 300, [261], max_kept=4)
process = compiler.acquire(compiler.compile(StructuredOutputs(choice=["a"])))
print("ready", flush=True)
time.sleep(60)
"""


def test_no_process_outlives_the_one_that_it_serves(tokenizer_file):
    with subprocess.Popen([sys.executable, "-c", HOLDS_A_GRAMMAR, str(tokenizer_file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "ready\n"
        children = psutil.Process(holder.pid).children(recursive=True)
        holder.kill()
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_without_xgrammar_the_error_says_how_to_get_it(compiler, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(RequestError, match=r"the library xgrammar, .* --no-deps xgrammar==0\.2\.8"):
        compiler.compile(StructuredOutputs(choice=["a"]))


def test_a_damaged_tokenizer_is_an_error_of_the_request(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    compiler = GrammarCompiler(file, VOCAB, [END])
    with pytest.raises(RequestError, match="tokenizer"):
        compiler.compile(StructuredOutputs(choice=["a"]))
    compiler.close()
