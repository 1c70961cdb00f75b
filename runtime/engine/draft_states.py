"""The states that drafts need beside their sequences' own while a step is under way.

A branch has blocks of its own, which the sequence takes over if that is what comes. A recurrent state can't be cut: it is set aside before
it takes in drafted tokens, and where one of them does not come, the sequence goes back to it and computes what came of the step again,
with what follows.
"""

from __future__ import annotations

from cupola.runtime.engine.request import Sequence
from cupola.runtime.engine.sampler import Samples
from cupola.runtime.engine.state_manager import Copies, State, StateManager
from cupola.runtime.engine.step import Step
from cupola.runtime.engine.token_tree import num_alike


class DraftStates:
    """Those of one step, from when it is planned until what came of it is known."""

    def __init__(self, states: StateManager) -> None:
        self._states = states
        self._branches: list[State] = []
        self._aside: dict[Sequence, State] = {}

    @property
    def can_branch(self) -> bool:
        """False where a sequence's blocks may move meanwhile, or it carries a state."""
        return self._states.sinks is None and self._states.slots is None

    def set_aside(self, sequence: Sequence) -> bool:
        """Keeps a recurrent state as it is before drafted tokens, if there is one; False if no slot is free for that."""
        if self._states.slots is None:
            return True
        if (kept := self._states.set_aside(sequence.state)) is None:
            return False
        self._aside[sequence] = kept
        return True

    def branch(self, sequence: Sequence, end: int, copies: Copies) -> State | None:
        """Blocks of its own for a chain up to token `end` that branches off a sequence; None if there are too few free ones.

        Adds to `copies` what must be copied first.
        """
        state = self._states.fork(sequence.state)
        moved = self._states.reserve(state, sequence.num_computed_tokens, end)
        if moved is None:
            self._states.release(state)
            return None
        copies += moved
        self._branches.append(state)
        return state

    def settle(self, step: Step, samples: Samples) -> set[Sequence]:
        """Gives sequences the state of what came, and lets go of the others.

        Returns the sequences whose state is that from before the step.
        """
        went_back = set[Sequence]()
        if not self._branches and not self._aside:
            return went_back
        came: dict[Sequence, list[int]] = {}
        for sample in samples.tokens:
            came.setdefault(sample.sequence, []).append(sample.token_id)
        for chunk in (chunk for chunk in step.chunks if chunk.draft):
            sequence, tokens = chunk.sequence, came.get(chunk.sequence, ())
            chosen = max((chunk, *chunk.branches), key=lambda chain: num_alike(chain.draft, tokens))  # of equals the first
            if chosen is not chunk:
                self._branches.remove(chosen.state)
                self._branches.append(sequence.state)
                sequence.state = chosen.state
            if sequence in self._aside and num_alike(chunk.draft, tokens) < len(chunk.draft):
                self._states.go_back(sequence.state, self._aside.pop(sequence))
                sequence.state.source = -1
                went_back.add(sequence)
        self.release()
        return went_back

    def release(self) -> None:
        """Lets go of all of them."""
        for sequence in self._aside:
            sequence.state.source = -1
        for state in (*self._branches, *self._aside.values()):
            self._states.release(state)
        self._branches.clear()
        self._aside.clear()
