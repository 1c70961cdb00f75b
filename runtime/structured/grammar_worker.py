"""Compiles grammars and says which tokens they allow next. Run as a module by `grammar_process.py`.

Each grammar has a process that has read the vocabulary (`runtime/system/warm_process.py`): a grammar may come from anyone, may take for
ever to compile or to match, and is then killed without harm to the others.

A grammar's process reads and writes frames over a socket, each 4 bytes of length and that many of content. The first says
what to compile (JSON); its answer is the start's: {"error": …} or {"num_bytes": …}. Each further one (JSON) has "rows": each a
sequence's name, its new tokens, and tokens drafted after them; and "forget": names. Its answer is a line of JSON, how each row stands
after its new tokens and after each drafted one, as far as these are allowed, and the masks of all that.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from cupola.runtime.artifact.verified import identify
from cupola.runtime.structured import xgrammar_library as xgrammar
from cupola.runtime.structured.lark_grammar import replace_lark
from cupola.runtime.system.limits import Allowance, limit_memory
from cupola.runtime.system.memory import address_space
from cupola.runtime.system.warm_process import serve

MAX_GROWTH_BYTES = 512 << 20  # of a grammar's process over what it had with the vocabulary
MAX_BYTES = 4 << 30  # of it, where the system does not say what it had
MAX_ERROR_CHARACTERS, MAX_LOG_BYTES = 200, 65536
MAX_CREDIT_SECONDS, ROW_SECONDS = 1.0, 0.02  # processor time for matching: how much can be saved up, and what a row adds


def main(channel: str, file: Path, identity: str, vocab_size: int, stop_token_ids: list[int], max_seconds: float) -> None:
    """Serves each grammar that comes, until nobody can send any more."""

    def prepare() -> list[xgrammar.Vocabulary] | str:
        try:
            if identify(file) != identity:
                raise RuntimeError("its file was replaced; start the program again")
            return [xgrammar.Vocabulary(file, vocab_size, stop_token_ids, with_special_tokens=special) for special in (False, True)]
        except Exception as problem:  # noqa: BLE001  the library raises whatever it likes; each grammar is told
            return f"the tokenizer can't be used: {problem}"

    serve(channel, prepare, lambda vocabularies, connection: _serve(connection, vocabularies, max_seconds))


def _serve(connection: socket.socket, vocabularies: list[xgrammar.Vocabulary] | str, max_seconds: float) -> None:
    stream = connection.makefile("rb")
    frame = _read(stream)
    if frame is None:
        return
    kind, text = json.loads(frame)
    in_use = address_space()
    limit_memory(MAX_BYTES if in_use is None else in_use + MAX_GROWTH_BYTES)  # a huge allocation fails here instead of filling the machine
    log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as this process
    os.dup2(log.fileno(), sys.stderr.fileno())
    try:
        with Allowance(max_seconds):
            if isinstance(vocabularies, str):
                raise RuntimeError(vocabularies)
            grammar = xgrammar.Grammar(vocabularies[kind == "structural_tag"], kind, replace_lark(kind, text))
            if kind != "grammar" and (warning := _read_warning(log)):  # of what it will not hold the output to
                raise RuntimeError(warning)
            if grammar.fill([grammar.matcher()])[1] == ["stuck"]:
                raise RuntimeError("it allows no output at all")
    except Exception as problem:  # noqa: BLE001  the library raises whatever it likes
        return _write(connection, json.dumps({"error": _tidy(problem)}).encode())
    _write(connection, json.dumps({"num_bytes": grammar.num_bytes}).encode())
    matchers: dict[str, Any] = {}
    allowance = Allowance(MAX_CREDIT_SECONDS)
    while (frame := _read(stream)) is not None:
        message = json.loads(frame)
        allowance.add(ROW_SECONDS * sum(1 + len(draft) for *_, draft in message["rows"]), most=MAX_CREDIT_SECONDS)
        with allowance:
            answer = _answer(grammar, matchers, message)
        _write(connection, answer)


def _answer(grammar: xgrammar.Grammar, matchers: dict[str, Any], message: dict[str, Any]) -> bytes:
    for name in message["forget"]:
        matchers.pop(name, None)
    rows = message["rows"]
    for name, *_ in rows:
        if name not in matchers:
            matchers[name] = grammar.matcher()
    fits = [xgrammar.accept(matchers[name], token_ids) for name, token_ids, _ in rows]
    masks, states = grammar.fill([matchers[name] for name, *_ in rows])
    answers = []
    for (name, _, draft), mask, state, fit in zip(rows, masks, states, fits, strict=True):
        answers.append([(state if fit else "stuck", mask.tobytes())])
        if draft and fit:
            answers[-1] += _follow(grammar, matchers[name], state, draft)
    header = json.dumps([[state for state, _ in answer] for answer in answers])
    return header.encode() + b"\n" + b"".join(mask for answer in answers for _, mask in answer)


def _follow(grammar: xgrammar.Grammar, matcher: Any, state: str, draft: list[int]) -> list[tuple[str, bytes]]:
    """How a matcher stands after each drafted token, up to the first that is not allowed; it then goes back."""
    found: list[tuple[str, bytes]] = []
    for token_id in draft:
        if state != "open" or not xgrammar.accept(matcher, [token_id]):
            break
        masks, (state,) = grammar.fill([matcher])
        found.append((state, masks.tobytes()))
    if found:
        matcher.rollback(len(found))
    return found


def _read(stream: IO[bytes]) -> bytes | None:
    head = stream.read(4)
    return stream.read(struct.unpack("<I", head)[0]) if len(head) == 4 else None


def _write(connection: socket.socket, content: bytes) -> None:
    connection.sendall(struct.pack("<I", len(content)) + content)


def _read_warning(log: IO[bytes]) -> str | None:
    """The first warning that the library wrote, which has no other way to give it.

    Not of oneOf: `json_schema.py` has seen that its branches exclude each other.
    """
    log.seek(0)
    found = re.findall(r"\bWarning: (?!oneOf)(.*)", log.read(MAX_LOG_BYTES).decode(errors="replace"))
    return found[0] if found else None


def _tidy(problem: Exception) -> str:
    """XGrammar's message without the time and the place in its source."""
    if isinstance(problem, MemoryError) or "bad_alloc" in str(problem):
        return "it takes too much memory"
    text = re.sub(r"^(\[[\d:]+\] )?(\S+\.(cc|h):\d+: )?", "", str(problem).strip())
    text = " ".join(text.split())
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[: MAX_ERROR_CHARACTERS // 2]} … {text[-MAX_ERROR_CHARACTERS // 2 :]}"


if __name__ == "__main__":
    own_end, tokenizer_file, state, size, stops, seconds = sys.argv[1:]
    main(own_end, Path(tokenizer_file), state, int(size), json.loads(stops), float(seconds))
