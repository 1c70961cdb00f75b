"""A tokenizer's file that is replaced while the program runs: processes that start later refuse it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cupola.runtime.errors import RequestError
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from cupola.runtime.text.tokenizer import Tokenizer
from tests.runtime.tokenizers_for_tests import byte_level, save

VOCAB, LONG = 264, "long " * 10_000


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.rename(file)


def test_long_texts_are_refused(tmp_path: Path):
    file = save(byte_level(), tmp_path)
    tokenizer = Tokenizer(file, is_bounded=True)
    ids = tokenizer.encode(LONG)
    replace(file)
    assert tokenizer.encode(LONG) == ids  # the process has the right one
    tokenizer.close()
    with pytest.raises(RequestError, match="was replaced"):
        tokenizer.encode(LONG)
    tokenizer.close()


def test_grammars_are_refused(tmp_path: Path):
    file = save(byte_level(), tmp_path)
    compiler = GrammarCompiler(file, VOCAB, [262])
    replace(file)
    with pytest.raises(RequestError, match="was replaced"):
        compiler.compile(StructuredOutputs(regex="a+"))
    compiler.close()
