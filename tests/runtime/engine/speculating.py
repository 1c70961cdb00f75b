"""Engines that speculate, for tests: over the fake model, with proposers that are right as often as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import cast

import numpy as np
import pytest

import cupola.runtime.engine.speculation as module
from cupola.runtime.engine.engine import Engine
from cupola.runtime.engine.outputs import RequestOutput
from cupola.runtime.engine.proposers.proposer import Context, Draft, Proposer
from cupola.runtime.engine.speculation import Speculation
from cupola.runtime.errors import EngineError
from tests.runtime.fakes import BLOCK, VOCAB, FakeExecutor


class Oracle:
    """Knows what comes, and says something else now and then.

    Args:
        answers: the outputs to come, by the sequence's name.
        num_right: how many tokens of a draft are right, drawn anew for each from 0 to this.
        num_others: other drafts that it gives along, right as often.
    """

    is_free = True
    doubts = False

    def __init__(self, answers: Callable[[str], Sequence[int]], num_right: int, seed: int = 0, num_others: int = 0) -> None:
        self._answers, self._num_right, self._random = answers, num_right, np.random.default_rng(seed)
        self._num_others = num_others
        self.known: set[str] = set()

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        drafts = [[self._draft(context) for _ in range(1 + self._num_others)] for context in contexts]
        return [first._replace(others=tuple(others)) for first, *others in drafts]

    def _draft(self, context: Context) -> Draft:
        self.known.add(context.name)
        num_output = len(context.token_ids) - context.num_prompt_tokens
        draft = list(self._answers(context.name)[num_output : num_output + self._random.integers(self._num_right + 1)])
        draft += self._random.integers(0, VOCAB, self._random.integers(4)).tolist()
        return Draft(tuple(draft[: context.most]))

    def forget(self, context: Context) -> None:
        self.known.discard(context.name)


def speculate(engine: Engine, proposer: Proposer, patch: pytest.MonkeyPatch) -> Engine:
    """Lets an engine use every draft, as if more tokens in a step cost nothing."""
    patch.setattr(module, "MIN_GAIN", 0.0)
    engine.speculation = Speculation(proposer, VOCAB)
    patch.setattr(engine.speculation.costs, "table", lambda most: [1.0] * (most + 1))
    return engine


def run_through(engine: Engine, failures: AbstractSet[int], aborted: int | None = None) -> tuple[dict[str, RequestOutput], int]:
    """Runs all requests, with a failure in each step of `failures`, and ends request "0" in step `aborted`; nothing stays taken.

    Returns the outputs by the requests' names, and how many steps there were.
    """
    outputs: dict[str, RequestOutput] = {}
    step = 0
    while engine.has_unfinished_requests():
        cast("FakeExecutor", engine.executor).num_failures = step in failures
        if step == aborted:
            engine.abort("0")
        step += 1
        try:
            outputs |= {request.spec.request_id: request.output() for request in engine.step()}
        except EngineError as error:
            assert "on fire" in str(error)
        engine.scheduler.check_integrity()
        for sequence in engine.scheduler.running:  # what was taken for drafts is given back
            assert all(len(table) <= -(-(sequence.num_computed_tokens + 5) // BLOCK) for table in sequence.state.tables)
    engine.check_idle()
    return outputs, step
