"""Writes grammars in Lark's form (https://lark-parser.readthedocs.io/en/stable/grammar.html) as GBNF.

Lark itself reads them, and makes plain rules of imports, templates, repetitions and what is optional. A text is accepted if Lark's
Earley parser accepts it with some way to split it into terminals ("dynamic_complete"): names of results, priorities and what a lexer
would rather see (a keyword and not a name, the longest match, the first alternative of `/a|ab/`) say nothing. What is ignored comes to
an end, see `lark_ignored.py`.

A grammar may come from anyone, and a few characters of it may mean thousands of rules: call this where time and memory have limits, as
`grammar_worker.py` does.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cupola.runtime.structured.character_sets import join_classes
from cupola.runtime.structured.lark_ignored import Ignored
from cupola.runtime.structured.lark_terminals import TerminalError, TerminalWriter, as_regex
from cupola.runtime.structured.regular_expressions import counts_too_much
from cupola.runtime.structured.structural_tags import parts_of

if TYPE_CHECKING:
    from lark import Lark
    from lark.grammar import Rule

MAX_REGEX = 50_000  # characters of a terminal's expression, times what is counted in it; XGrammar can't take much more
_COUNT = re.compile(r",(\d+)\}")
_LIBRARY = "common.lark"  # the one file that is imported from, Lark's own
_GBNF_RULE = re.compile(r"^[ \t]*[\w.-]+\s*::=", re.MULTILINE)
_LARK_RULE = re.compile(r"^[ \t]*[?!]{0,2}[a-zA-Z_]\w*(\{[^}\n]*\})?(\.[+-]?\d+)?[ \t]*:(?![:=])", re.MULTILINE)  # start: "a" | b


class LarkGrammarError(ValueError):
    """Raised for a fault in a grammar, or a part of it that can't be written as GBNF."""


def is_lark(text: str) -> bool:
    """True if a grammar is written in Lark's form, and not as GBNF."""
    return _GBNF_RULE.search(text) is None and _LARK_RULE.search(text) is not None


def is_installed() -> bool:
    """True if the library lark is installed."""
    return importlib.util.find_spec("lark") is not None


def replace_lark(kind: str, text: str) -> str:
    """Replaces a grammar in Lark's form, also inside of a structural tag, by GBNF. Raises LarkGrammarError."""
    if kind == "grammar":
        return write_gbnf(text) if is_lark(text) else text
    if kind != "structural_tag":
        return text
    tag = json.loads(text)
    for part in parts_of(tag):
        if part.get("type") == "grammar" and is_lark(str(part.get("grammar"))):
            part["grammar"] = write_gbnf(part["grammar"])
    return json.dumps(tag, ensure_ascii=False)


def write_gbnf(text: str) -> str:
    """The grammar in GBNF, whose first rule is root.

    Args:
        text: in Lark's form, its first rule called start.

    Raises:
        LarkGrammarError: naming what Lark or GBNF can't take, and where it stands.
    """
    try:
        return _Writer(_read(text)).write()
    except RecursionError:
        raise LarkGrammarError("it is nested too deeply; make rules of what is inside") from None


def _read(text: str) -> Lark:
    from lark import Lark
    from lark.exceptions import GrammarError

    try:
        return Lark(text, parser="earley", lexer="dynamic_complete", import_paths=[_check_import])
    except (LarkGrammarError, RecursionError, MemoryError):
        raise
    except GrammarError as error:
        problem, *about = error.args
        if about and "zero-width" in problem:
            terminal = _describe(about[0].name, about[0].pattern.to_regexp())
            raise LarkGrammarError(f"the terminal {terminal} may be empty, which Lark refuses; make its use optional") from None
        undefined = "NonTerminal('start')" in problem
        raise LarkGrammarError("it has no rule called start" if undefined else str(problem)) from None
    except Exception as error:  # noqa: BLE001  Lark asserts much of what it reads
        raise LarkGrammarError(f"Lark can't read it: {type(error).__name__} {error}") from None


def _check_import(folder: Any, path: str) -> tuple[str, str]:
    """Refuses to read any file but Lark's own, which Lark finds by itself. It asks this first, as a way to find files."""
    if folder is not None or path != _LIBRARY:
        name = path.removesuffix(".lark")
        raise LarkGrammarError(f"%import from {name} is not supported, only from common; write what it defines into the grammar")
    raise FileNotFoundError(path)


class _Writer:
    def __init__(self, grammar: Lark) -> None:
        self._regexps = {terminal.name: terminal.pattern.to_regexp() for terminal in grammar.terminals}
        self._rules: dict[str, list[Rule]] = defaultdict(list)
        for symbol in (symbol for rule in grammar.rules for symbol in rule.expansion):
            if symbol.is_term and symbol.name not in self._regexps:
                raise LarkGrammarError(f"the terminal {symbol.name} is only declared; say what it is")
        for rule in _without_endless(grammar.rules, self._regexps):
            self._rules[rule.origin.name].append(rule)
        self._names: dict[str, str] = {}
        self._terminals = TerminalWriter()
        try:
            self._ignored = Ignored([self._regexps[name] for name in dict.fromkeys(grammar.ignore_tokens)], self._terminals)
        except TerminalError as error:
            raise LarkGrammarError(f"what is ignored: {error}") from None

    def write(self) -> str:
        if "start" not in self._rules:
            raise LarkGrammarError("no text ever satisfies it: start needs itself without end")
        lines = [f"root ::= {self._name('start')} {self._ignored.at_end()}"]
        waiting = ["start"]
        while waiting:
            name = waiting.pop()
            ways = self._rules.get(name, [])
            symbols = {symbol.name for rule in ways for symbol in rule.expansion}
            waiting += sorted(symbol for symbol in symbols if symbol not in self._names)
            written = [" ".join(self._name(symbol.name) for symbol in rule.expansion) or '""' for rule in ways]
            lines.append(f"{self._name(name)} ::= {' | '.join(written) or self._terminal(name)}")
        return "\n".join([*lines, *(f"{name} ::= {join_classes(body)}" for name, body in self._dotted().items())])

    def _dotted(self) -> dict[str, str]:
        return self._ignored.rules | self._terminals.rules

    def _name(self, symbol: str) -> str:
        """A name in GBNF, with no dot, unlike those that aren't the grammar's; a template's has braces in Lark."""
        return self._names.setdefault(symbol, re.sub(r"\W", "_", symbol) + f"_{len(self._names)}")

    def _terminal(self, name: str) -> str:
        regexp = self._regexps[name]
        try:
            before, expression = self._ignored.before(regexp), self._terminals.write(regexp)
        except TerminalError as error:
            raise LarkGrammarError(f"the terminal {_describe(name, regexp)}: {error}") from None
        alone = as_regex(expression, self._dotted())
        is_small = len(alone) * math.prod(int(count) for count in _COUNT.findall(alone) if count != "0") <= MAX_REGEX
        is_regex = is_small and not counts_too_much(alone)
        return as_regex(f"{before}({expression})", self._dotted()) if is_regex else join_classes(f"{before}({expression})")


def _describe(name: str, regexp: str) -> str:
    """A terminal for errors; Lark's names for those without one begin with underscores."""
    regexp = f"/{regexp:.60}/".encode(errors="backslashreplace").decode()
    return regexp if name.startswith("__") else f"{name}, {regexp}"


def _without_endless(rules: Iterable[Rule], terminals: Iterable[str]) -> list[Rule]:
    """The rules that some text satisfies; others would lead a model to where it can't end."""
    needs = {rule: {symbol.name for symbol in rule.expansion} for rule in rules}
    users: dict[str, list[Rule]] = defaultdict(list)
    for rule, symbols in needs.items():
        for symbol in symbols:
            users[symbol].append(rule)
    found = [rule for rule, symbols in needs.items() if not symbols]
    waiting, known = [*terminals, *(rule.origin.name for rule in found)], set[str]()
    while waiting:
        symbol = waiting.pop()
        if symbol in known:
            continue
        known.add(symbol)
        for rule in users[symbol]:
            needs[rule].discard(symbol)
            if not needs[rule]:
                found.append(rule)
                waiting.append(rule.origin.name)
    return found
