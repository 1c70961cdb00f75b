"""XGrammar's native library, called without its Python package: that one imports torch and transformers.

Only the grammar processes (`grammar_process.py`) import this file. What it calls is private to XGrammar and pinned to one
version of it: each call's arguments are those of `xgrammar/tvm_ffi_binding/_ffi_api.py`, given by position.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # tvm_ffi imports torch, hundreds of megabytes, wherever it can
import tvm_ffi  # noqa: E402
from tvm_ffi.libinfo import load_lib_module  # noqa: E402

from cupola.runtime.structured.json_schema_pattern import rewrite_patterns  # noqa: E402
from cupola.runtime.structured.structural_tags import has_schema, parts_of  # noqa: E402

Masks = npt.NDArray[np.int32]  # [rows, words]: bit i % 32 of word i // 32 says whether token i may come next
BYTE_FALLBACK, BYTE_LEVEL = 1, 2  # how tokens are written, in XGrammar's numbers
BYTE_LETTERS = frozenset(
    chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))
)  # GPT-2's stand-ins for the 256 bytes
NO_LIMIT = -1
_DIGIT_RULE = re.compile(r"^(\w+) ::= \(\(\[0-9\]\)\)$", re.MULTILINE)
_DIGITS_RULE = re.compile(r"^(\w+) ::= \(\(\[0-9\] \1\) \| \(\[0-9\]\)\)$", re.MULTILINE)  # of dates and durations
_FREE_DIGITS = re.compile(  # as XGrammar writes whole numbers, fractions and exponents; else a text or an escape, to pass over it
    r"""(?P<head>\[1-9\]|"\."|\[eE\] \w+) (?P<digit>\w+|\[0-9\])(?:\*|\{(?P<fewest>\d+), -1\})|"(?:\\.|[^"\\])*"|\\."""
)
_MOST_DIGITS = 18  # after the first one, or after the point
_EXPONENT = '([0-9]{1,2} | ("1" [0-9] | "2" [0-8]) [0-9])'  # to 289: with 19 digits before it, that is no more than a double holds
HEX_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\x([0-9a-fA-F]{2})")


def _load() -> dict[str, Any]:
    """The library's classes by name."""
    spec = importlib.util.find_spec("xgrammar")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("xgrammar is not installed")
    load_lib_module("xgrammar", "xgrammar_bindings", extra_lib_paths=[Path(spec.origin).parent])
    names = ("BatchGrammarMatcher", "CompiledGrammar", "Grammar", "GrammarCompiler", "GrammarMatcher", "TokenizerInfo")
    return {name: tvm_ffi.register_object(f"xgrammar.tvm_ffi_binding.{name}")(type(name, (tvm_ffi.Object,), {})) for name in names}


_classes = _load()


class Vocabulary:
    """The text that each token id adds to the output, read from a `tokenizer.json`.

    Args:
        file: the tokenizer.json.
        vocab_size: the width of the logits; ids that the tokenizer doesn't know are never allowed.
        stop_token_ids: tokens that end the output, allowed only where the grammar may end.
        with_special_tokens: whether special tokens stand for their own text. Detokenized text leaves them out, so that a grammar
            which took them for text would be wrong about what it has seen.
    """

    def __init__(self, file: Path, vocab_size: int, stop_token_ids: Sequence[int], *, with_special_tokens: bool) -> None:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        kind, add_prefix_space = _describe(tokenizer, vocab)
        tokens = [""] * vocab_size
        for token, token_id in vocab.items():
            if token_id < vocab_size:
                tokens[token_id] = token
        special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special and i < vocab_size}
        for token_id in () if with_special_tokens else special.difference(stop_token_ids):
            tokens[token_id] = ""
        self.size, self.stop_token_ids = vocab_size, tuple(stop_token_ids)
        self.handle = _classes["TokenizerInfo"](tokens, kind, vocab_size, list(stop_token_ids), add_prefix_space)

    def to_json(self) -> str:
        """Everything that XGrammar knows of the vocabulary."""
        return str(self.handle.serialize_json())


def _describe(tokenizer: tokenizers.Tokenizer, vocab: Mapping[str, int]) -> tuple[int, bool]:
    """How tokens are written, and whether text gets a space before it.

    The vocabulary itself is asked first, as XGrammar does: the rest of the file may be a conversion's guess.
    """
    found = json.loads(_classes["TokenizerInfo"]._detect_metadata_from_hf(tokenizer.to_str()))
    seen = _kind_of(vocab)
    if seen is None or seen == found["vocab_type"]:
        return found["vocab_type"], found["add_prefix_space"]
    first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
    return seen, bool(first) and first[0].startswith("▁" if seen == BYTE_FALLBACK else "Ġ")


def _kind_of(vocab: Mapping[str, int]) -> int | None:
    if sum(f"<0x{byte:02X}>" in vocab for byte in range(256)) >= 128:
        return BYTE_FALLBACK
    num_letters = sum(letter in vocab for letter in BYTE_LETTERS)
    num_in_letters = sum(BYTE_LETTERS.issuperset(token) for token in vocab)
    return BYTE_LEVEL if num_letters >= 128 and num_in_letters >= 0.99 * len(vocab) else None


class Grammar:
    """A grammar compiled for a vocabulary.

    Args:
        kind: "json" (a schema), "regex", "grammar" (GBNF) or "structural_tag".

    Raises:
        RuntimeError: XGrammar's words on what is wrong with it.
    """

    def __init__(self, vocabulary: Vocabulary, kind: str, text: str) -> None:
        compiler = _classes["GrammarCompiler"](vocabulary.handle, 1, False, NO_LIMIT)
        if kind == "regex":
            self._compiled = compiler.compile_regex(text)
        elif kind == "grammar":
            self._compiled = compiler.compile_grammar_from_strings(text, "root")
        else:
            self._compiled = compiler.compile_grammar_from_strings(_write_grammar(kind, text), "root")
        self._stops = make_mask(vocabulary.stop_token_ids, vocabulary.size)
        self._batch = _classes["BatchGrammarMatcher"](1)

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        return int(self._compiled.memory_size_bytes())

    def matcher(self) -> Any:
        """A matcher at the grammar's start; `accept` moves it on."""
        stop_token_ids, ends_without_stop, max_rollback, temperature = None, False, -1, None
        return _classes["GrammarMatcher"](self._compiled, stop_token_ids, ends_without_stop, max_rollback, temperature)

    def fill(self, matchers: Sequence[Any]) -> tuple[Masks, list[str]]:
        """Masks of the tokens that may come next, a row for each matcher, and each one's state.

        Returns:
            The masks, and for each "open", "done" (nothing but the end may come) or "stuck" (not even that).
        """
        masks = np.zeros((len(matchers), self._stops.size), np.int32)
        self._batch.batch_fill_next_token_bitmask(list(matchers), masks, list(range(len(matchers))), False)
        goes_on = [bool(row.any()) for row in masks & ~self._stops]
        states = ["open" if on else "done" if matcher.is_completed() else "stuck" for on, matcher in zip(goes_on, matchers, strict=True)]
        return masks, states


def _write_grammar(kind: str, text: str) -> str:
    """GBNF of a JSON schema (for JSON on one line, with no more properties than it names) or of a structural tag."""
    if kind == "json":
        any_whitespace, indent, separators, strict, max_whitespace, prints, any_order = False, None, None, True, None, False, False
        options = (any_whitespace, indent, separators, strict, max_whitespace, prints, any_order)
        text = json.dumps(rewrite_patterns(json.loads(text)), ensure_ascii=False)
        return _mend_schema(_to_string(_classes["Grammar"].from_json_schema(text, *options)))
    tag = json.loads(text)
    for part in filter(has_schema, parts_of(tag)):
        rewrite_patterns(part["json_schema"])
        alone = json.dumps({"type": "structural_tag", "format": part})
        written = _to_string(_classes["Grammar"].from_structural_tag(alone))
        written = _mend_schema(written, has_only_numbers=_has_only_numbers(part))
        part.clear()  # schemas alone are mended, not what stands beside them: other grammars may look like them
        part.update(type="grammar", grammar=written)
    return _to_string(_classes["Grammar"].from_structural_tag(json.dumps(tag)))


def _to_string(grammar: Any) -> str:
    """The grammar in GBNF. XGrammar writes a character as \\x and two digits, but would read any digits after them as part of it."""
    return HEX_ESCAPE.sub(r"\1\\u00\2", str(grammar.to_string()))


def _mend_schema(grammar: str, *, has_only_numbers: bool = True) -> str:
    """A schema's grammar without control characters in strings of limited length, which JSON forbids, and with limited digits.

    Args:
        has_only_numbers: whether what looks like a number is one.
    """
    grammar = grammar.replace(r"[^\"\\\r\n]", r"[^\0-\x1f\"\\\r\n]")
    return _limit_digits(grammar) if has_only_numbers else grammar


def _has_only_numbers(format: Mapping[str, Any]) -> bool:
    """Patterns stand in a JSON grammar as they are, and in an XML-styled one as rules, like those of numbers."""
    is_json = format["type"] == "json_schema" and format.get("style", "json") == "json"
    return is_json or "attern" not in json.dumps(format["json_schema"])  # as a keyword, or in patternProperties


def _limit_digits(grammar: str) -> str:
    """Numbers with no more digits than 64 bits take, or their bound: a small model would write digits for ever. So have dates.

    Multiples of a number are left without end: each of their digits is a rule.
    """
    digits = {"[0-9]", *_DIGIT_RULE.findall(grammar)}

    def limit(found: re.Match[str]) -> str:
        if found["digit"] not in digits:
            return found[0]
        if "e" in found["head"]:
            return f"{found['head']} {_EXPONENT}"
        fewest = int(found["fewest"] or 0)
        return f"{found['head']} {found['digit']}{{{fewest},{max(fewest, _MOST_DIGITS)}}}"

    return _FREE_DIGITS.sub(limit, _DIGITS_RULE.sub(rf"\1 ::= (([0-9]{{1,{_MOST_DIGITS}}}))", grammar))


def accept(matcher: Any, token_ids: Iterable[int]) -> bool:
    """Moves a matcher on; False if one of the tokens was not allowed."""
    return all(matcher.accept_token(token_id, False) for token_id in token_ids)


def make_mask(token_ids: Iterable[int], vocab_size: int) -> Masks:
    """The mask, int32 [words], that allows just these tokens."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)
