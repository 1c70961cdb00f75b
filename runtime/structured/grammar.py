"""Structured output: grammars, checked and kept at hand.

A grammar may come from anyone. One that compiles in a moment may still take minutes to say which tokens it allows next, so
compiling and matching happen in a process for each grammar that can be killed (`grammar_process.py`). What crosses from one
of our processes to another is the grammar's source: compiled, it can be a hundred times as large, and reading that takes
longer than compiling it anew.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cupola.runtime.errors import EngineError, RequestError
from cupola.runtime.structured.grammar_process import GrammarProcess, GrammarServer, wait_until_compiled
from cupola.runtime.structured.structured_outputs import StructuredOutputs
from cupola.runtime.system.limits import warn_of_unlimited_memory

XGRAMMAR_VERSION = "0.2.8"  # whose native calls `xgrammar_library.py` makes
MAX_SECONDS = 10.0
MAX_WAIT_SECONDS = 30.0  # on a busy machine that much processor time takes longer, and so does the first start
MAX_AT_ONCE = 2  # grammars that are compiled at the same time
MAX_VERDICTS = 1024
MAX_KEPT_BYTES = 256 << 20
IDLE_SECONDS = 60.0


class GrammarCompiler:
    """Compiles grammars for a model's vocabulary. Needs no engine; for several threads.

    Args:
        file: the tokenizer.json.
        vocab_size: the width of the logits.
        stop_token_ids: the model's own.
        max_seconds: processor time that compiling one grammar may take.
        max_kept: grammars that are kept ready after their use, beside those in use; `acquire` finds them there.
        max_kept_bytes: their memory, at most.
        idle_seconds: after which without any use all processes end that nobody has acquired.
    """

    def __init__(
        self,
        file: Path,
        vocab_size: int,
        stop_token_ids: Sequence[int],
        *,
        max_seconds: float = MAX_SECONDS,
        max_kept: int = 0,
        max_kept_bytes: int = MAX_KEPT_BYTES,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._server, self._max_seconds = GrammarServer(file, vocab_size, stop_token_ids, max_seconds), max_seconds
        self._idle_seconds, self._last_use, self._watched, self._num_judging = idle_seconds, 0.0, False, 0
        self._max_kept, self._max_kept_bytes = max_kept, max_kept_bytes
        self._kept: OrderedDict[bytes, GrammarProcess] = OrderedDict()  # least recently used first
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()  # by the source's hash: what is wrong with it, or nothing
        self._lock, self._slots = threading.Lock(), threading.Semaphore(MAX_AT_ONCE)

    def compile(self, structured_outputs: StructuredOutputs) -> bytes:
        """The grammar, checked: what `Engine.add_request` takes, in this process or another. Takes up to some seconds.

        Raises:
            RequestError: naming the field and what is wrong with it.
            EngineError: if no process could say so in time, twice.
        """
        check_installed()
        warn_of_unlimited_memory()
        source = json.dumps(structured_outputs.source(), ensure_ascii=False).encode()
        name = hashlib.blake2b(source, digest_size=16).digest()
        with self._lock:
            verdict = self._verdicts.get(name)
        if verdict is None:
            with self._slots, self._in_use():
                verdict = self._judge(source)
            with self._lock:
                self._verdicts[name] = verdict
                if len(self._verdicts) > MAX_VERDICTS:
                    self._verdicts.popitem(last=False)
        if verdict:
            raise RequestError(f"can't be used: {verdict}", field=structured_outputs.field, fix="change or simplify it")
        return source

    def acquire(self, source: bytes) -> GrammarProcess:
        """A process for a grammar that `compile` gave, ready if one was kept. Nobody else has it until it is released."""
        with self._lock:
            self._note_use()
            kept = self._kept.pop(source, None)
        return kept or self._server.open(source)

    def release(self, process: GrammarProcess) -> None:
        """Takes back a process that knows no sequences, to keep or to end."""
        with self._lock:
            self._note_use()
            replaced = self._kept.pop(process.source, None)
            if process.idle:
                self._kept[process.source] = process
            ended = [replaced] if replaced else [] if process.source in self._kept else [process]
            while len(self._kept) > self._max_kept or sum(kept.num_bytes or 0 for kept in self._kept.values()) > self._max_kept_bytes:
                ended.append(self._kept.popitem(last=False)[1])
        for process in ended:
            process.close()

    def close(self) -> None:
        """Ends every process that isn't acquired. Compiling again starts new ones."""
        with self._lock:
            ended, self._kept = list(self._kept.values()), OrderedDict()
        for process in ended:
            process.close()
        self._server.close()

    def _judge(self, source: bytes) -> str:
        """The grammar's fault, or "". Where its process was killed or stopped, another one tries."""
        for _ in range(2):
            start = time.monotonic()
            process = self.acquire(source)
            wait_until_compiled(process, MAX_WAIT_SECONDS)
            late, verdict, died = process.compiling, process.failure or "", process.ended
            self.release(process)
            if late:
                self.close()  # the server may be stopped, too
            elif not died or time.monotonic() > start + self._max_seconds:
                return verdict
        if late:
            raise EngineError("the grammar was not compiled in time; the machine may be too busy")
        return verdict

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._lock:
            self._num_judging += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_judging -= 1

    def _note_use(self) -> None:
        """Sees to it that the processes end some time after this. Called with the lock."""
        self._last_use = time.monotonic()
        if not self._watched:
            self._watched = True
            self._watch(self._idle_seconds)

    def _watch(self, seconds: float) -> None:
        watch = threading.Timer(seconds, _end_if_idle, [weakref.ref(self)])
        watch.daemon = True
        watch.start()

    def end_if_idle(self) -> None:
        """Ends the processes unless somebody used this lately; else looks again later."""
        with self._lock:
            left = self._idle_seconds if self._num_judging else self._last_use + self._idle_seconds - time.monotonic()
            self._watched = left > 0
            if left > 0:
                return self._watch(left)
        return self.close()


def _end_if_idle(compiler: weakref.ref[GrammarCompiler]) -> None:
    if (found := compiler()) is not None:
        found.end_if_idle()


def check_installed() -> None:
    """Checks that XGrammar's library is installed in the version that cupola knows. Raises RequestError."""
    from importlib import metadata  # here, since it takes longer to import than all else of this file

    field, fix = "structured_outputs", f"pip install apache-tvm-ffi, and pip install --no-deps xgrammar=={XGRAMMAR_VERSION}"
    try:
        version, _ = metadata.version("xgrammar"), metadata.version("apache-tvm-ffi")  # by which it is called
    except metadata.PackageNotFoundError as error:
        raise RequestError(f"needs the library {error.name}, which isn't installed", field=field, fix=fix) from None
    if version != XGRAMMAR_VERSION:
        raise RequestError(f"needs xgrammar {XGRAMMAR_VERSION}, and {version} is installed", field=field, fix=fix)
