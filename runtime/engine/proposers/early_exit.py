"""The model's own first layers say what it may say next (LayerSkip's self-speculative decoding, arXiv:2404.16710).

They are followed by the model's final norm and vocabulary projection. K and V of drafted tokens go where the sequence has them: the same
blocks, in those layers the same values, which the step that looks at the draft writes again. What stands there of a draft that was wrong or
not used is behind all that is computed, and so read by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from cupola.runtime.device.interface import Executor
from cupola.runtime.engine.proposers.proposer import NO_DRAFT, Context, Draft
from cupola.runtime.engine.request import Sequence
from cupola.runtime.engine.speculative import FIELD
from cupola.runtime.engine.state_manager import Copies, StateManager
from cupola.runtime.engine.step import build_step
from cupola.runtime.errors import EngineError, OptionError


class EarlyExitProposer:
    """A `SelfDrafter`. A draft is at most as long as the steps that the executor takes at once.

    Args:
        num_layers: how many of the model's first layers draft.
    """

    is_free = False
    doubts = False

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers

    def attach(self, executor: Executor, states: StateManager) -> None:
        """As `SelfDrafter`."""
        if not executor.num_layers:
            problem = "asks for some of the model's layers, which can't run alone: a GPU runs it, or its layers share more than one value"
            raise OptionError(problem, field=FIELD, fix="give another proposer")
        if self._num_layers >= executor.num_layers:
            problem = f"asks for {self._num_layers} layers, and the model has {executor.num_layers}"
            raise OptionError(problem, field=FIELD, fix=f"give 1 to {executor.num_layers - 1}")
        if states.sinks:
            problem = "drafts in a sequence's own blocks, which attention_sinks may move meanwhile"
            raise OptionError(problem, field=FIELD, fix="leave one of the two out")
        self._executor, self._states = executor, states

    def propose(self, contexts: SequenceOf[Context]) -> list[Draft]:
        """As `Proposer`. Who has room for fewer tokens than others, or finds no free blocks for them, does without."""
        most = min(max((context.most for context in contexts), default=0), self._executor.max_steps)
        copies: Copies = []
        going = [sequence for context in contexts if context.most >= most and (sequence := self._reserve(context, most, copies))]
        found = dict(zip(going, self._run(going, most, copies), strict=True)) if going else {}
        for sequence in going:  # what is used of a draft takes its blocks as any other
            self._states.cut(sequence.state, len(sequence.token_ids))
        return [found.get(context.sequence, NO_DRAFT) if context.sequence else NO_DRAFT for context in contexts]

    def forget(self, context: Context) -> None:
        """As `Proposer`; nothing is kept."""

    def _reserve(self, context: Context, most: int, copies: Copies) -> Sequence | None:
        """Takes blocks for the last token and all drafted ones but the last; None if there are too few free ones."""
        sequence = context.sequence
        if sequence is None:
            raise EngineError("a draft of the model's own layers was asked for without a sequence")
        moved = self._states.reserve(sequence.state, sequence.num_computed_tokens, len(sequence.token_ids) + most - 1)
        copies += moved or []
        return None if moved is None else sequence

    def _run(self, sequences: SequenceOf[Sequence], num_steps: int, copies: Copies) -> list[Draft]:
        """Tokens as the model would take them after those layers: with the numbers that it will draw with, where it draws."""
        draws = self._executor.draws_tokens
        step = build_step(dict.fromkeys(sequences, 1), copies, self._states.block_size, num_steps=num_steps, draws_tokens=draws)
        sampling = step.sampling._replace(rows=(), num_layers=self._num_layers)
        found = self._executor.submit(step.batch, sampling).result().argmax()[-num_steps:].T.tolist()
        ends = [next((i for i, token_id in enumerate(row) if token_id < 0), num_steps) for row in found]  # -1: no number came out
        return [Draft(tuple(row[:end])) for row, end in zip(found, ends, strict=True)]
