"""The tokens that the grammars of a step's sequences allow, asked for while the model runs.

A mask depends on nothing but its sequence's tokens. So a step that fails and a sequence that is preempted lose nothing, and a
process that was ended is replaced by one that is told the tokens again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from cupola.runtime.engine.request import Request, Sequence
from cupola.runtime.engine.step import Step
from cupola.runtime.structured.grammar import GrammarCompiler
from cupola.runtime.structured.grammar_process import Allowed, GrammarProcess, wait

GRACE_SECONDS = 0.02  # that a step waits for masks; who has none by then samples in a later step
MAX_SECONDS = 20.0  # for an answer on a busy machine: what takes less of the processor's time than this has been ended before


@dataclass(frozen=True)
class Failed:
    """Why a grammar allows nothing more."""

    error: str


Outcome = Allowed | Failed


@dataclass
class _Matching:
    """A grammar in use.

    Attributes:
        known: how many tokens the process knows of each sequence, by its name.
        asked: of how many tokens of a sequence an answer is still to come.
        since: when the oldest of these questions was asked, or the latest answer came.
    """

    process: GrammarProcess
    known: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    since: float = 0.0

    def ask(self, sequences: SequenceOf[Sequence], draft: SequenceOf[int]) -> None:
        """Tells the process the sequences' new tokens, so that it answers what may come next, and after each drafted token."""
        if not self.asked:
            self.since = time.monotonic()
        rows = [(sequence.name, sequence.output_from(self.known.get(sequence.name, 0)), draft) for sequence in sequences]
        for sequence in sequences:
            self.known[sequence.name] = self.asked[sequence.name] = sequence.num_output_tokens
        self.process.ask(rows)


class GrammarMasks:
    """Asks the grammars' processes and keeps their answers until the sampler wants them. For the engine's thread."""

    def __init__(self, compiler: GrammarCompiler | None) -> None:
        self._compiler = compiler  # None: no sequence has a grammar
        self._matchings: dict[bytes, _Matching] = {}  # by the grammar's source
        self._answers: dict[str, tuple[int, Outcome]] = {}  # by the sequence's name: after how many tokens, and what
        self._retried: dict[str, int] = {}  # by the sequence's name: after how many tokens another process was asked again

    def ask(self, step: Step) -> None:
        """Starts what the step's sampling will need, and the grammars of prompts that are still being read."""
        for chunk in step.chunks:
            source = chunk.sequence.request.spec.grammar
            if source is None or self._compiler is None:
                continue
            if source not in self._matchings:
                self._matchings[source] = _Matching(self._compiler.acquire(source))
            unasked = [s for s in chunk.sequence.samplers if chunk.samples and not self._is_asked(s, self._matchings[source])]
            if unasked:
                self._matchings[source].ask(unasked, chunk.draft)

    def take(self, step: Step) -> Mapping[Sequence, Outcome | None]:
        """The tokens allowed next for each sequence with a grammar that samples in this step; None where they aren't known yet.

        Waits a moment for those, and for a grammar that is late from an earlier step only if nothing came of this one otherwise.
        """
        if not self._matchings and not self._answers:
            return {}
        samplers = [sequence for chunk in step.chunks if chunk.samples for sequence in chunk.sequence.samplers]
        wanted = [sequence for sequence in samplers if sequence.request.spec.grammar is not None]
        start = now = time.monotonic()
        self._poll(now)
        while missing := [sequence for sequence in wanted if self._answer(sequence) is None]:
            found = (self._matchings.get(sequence.request.spec.grammar or b"") for sequence in missing)
            matchings = [matching for matching in found if matching is not None]  # else the next step asks another process
            patient = len(missing) == len(samplers)
            awaited = {id(m): m.process for m in matchings if patient or m.since + GRACE_SECONDS > start}
            if not awaited or now >= start + GRACE_SECONDS:
                break
            wait(awaited.values(), start + GRACE_SECONDS - now)
            now = time.monotonic()
            self._poll(now)
        return {sequence: self._answer(sequence) for sequence in wanted}

    def forget(self, request: Request) -> None:
        """Drops what is known of a request that has ended."""
        matching = self._matchings.get(request.spec.grammar or b"")
        for sequence in request.sequences:
            self._answers.pop(sequence.name, None)
            self._retried.pop(sequence.name, None)
            if matching is not None:
                matching.asked.pop(sequence.name, None)
                if matching.known.pop(sequence.name, None) is not None:
                    matching.process.forget(sequence.name)
        if matching is not None and not matching.known:
            self._drop(matching)

    def close(self) -> None:
        """Ends every process."""
        for matching in list(self._matchings.values()):
            self._drop(matching)
        if self._compiler is not None:
            self._compiler.close()

    def _is_asked(self, sequence: Sequence, matching: _Matching) -> bool:
        return matching.asked.get(sequence.name) == sequence.num_output_tokens or self._answer(sequence) is not None

    def _answer(self, sequence: Sequence) -> Outcome | None:
        num_tokens, outcome = self._answers.get(sequence.name, (None, None))
        return outcome if num_tokens == sequence.num_output_tokens else None

    def _poll(self, now: float) -> None:
        for matching in list(self._matchings.values()):
            if not matching.asked:
                continue
            for name, allowed in matching.process.poll().items():
                if name in matching.asked:
                    self._answers[name], matching.since = (matching.asked.pop(name), allowed), now
            late = now > matching.since + MAX_SECONDS and bool(matching.asked)
            if late and self._compiler is not None:
                matching.process.close()
                self._compiler.close()  # the server may be stopped, too
            if matching.process.failure is not None:
                self._fail(matching, retry=late or matching.process.ended)
                self._drop(matching)  # other sequences, if they have this grammar, begin anew with another process

    def _fail(self, matching: _Matching, *, retry: bool) -> None:
        """Answers what was asked of a process that has failed. With `retry` each question is asked once more: it may have been killed."""
        for name, num_tokens in matching.asked.items():
            if retry and self._retried.get(name) != num_tokens:
                self._retried[name] = num_tokens
            else:
                self._answers[name] = (num_tokens, Failed(f"the grammar can't be used: {matching.process.failure}"))

    def _drop(self, matching: _Matching) -> None:
        del self._matchings[matching.process.source]
        if self._compiler is not None:
            self._compiler.release(matching.process)
