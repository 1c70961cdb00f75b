"""Random schedules of sequences over a state manager: they start, grow, fork, are preempted or swapped, come back and end."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cupola.runtime.engine.block_pool import chain_hash
from cupola.runtime.engine.state_manager import Copies, State, StateManager
from tests.runtime.fakes import BLOCK


def hashes(tokens: list[int], salt: bytes = b"") -> list[bytes]:
    """The names of the whole blocks of these tokens."""
    names: list[bytes] = []
    for i in range(len(tokens) // BLOCK):
        names.append(chain_hash(names[-1] if names else salt, tokens[BLOCK * i : BLOCK * (i + 1)]))
    return names


class Schedules(RuleBasedStateMachine):
    """Nothing is lost, whatever comes next. What memory holds, and what must be found there, a subclass says."""

    manager: StateManager

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[State, list[int], int]] = []  # tokens, and how many are computed
        self.waiting: list[tuple[State, list[int]]] = []

    def copy(self, copies: Copies) -> None:
        """Copies blocks."""
        raise NotImplementedError

    def write(self, state: State, tokens: list[int], start: int, count: int) -> int | None:
        """Computes at most `count` of the tokens from `start` on. Returns where that ended; None if there is no room."""
        raise NotImplementedError

    def check_begun(self, state: State, tokens: list[int], length: int) -> None:
        """Looks at what the prefix cache gave of the first `length` tokens."""

    def admit(self, state: State, tokens: list[int]) -> bool:
        """Lets a sequence run, if there is room."""
        length = self.manager.begin(state, hashes(tokens[:-1])) * BLOCK
        self.check_begun(state, tokens, length)
        if not self.manager.has_room(state, len(tokens), 0):
            self.manager.release(state)
            return False
        length = max(length, state.num_swapped_tokens)
        self.copy(self.manager.swap_in(state))
        end = self.write(state, tokens, length, 7)  # others hold less than they will
        if end is None:
            self.manager.release(state)
            return False
        self.running.append((state, tokens, end))
        return True

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=40))
    def start(self, tokens: list[int]) -> None:
        self.admit(State(), tokens)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        i = data.draw(st.integers(0, len(self.waiting) - 1))
        if self.admit(*self.waiting[i]):
            del self.waiting[i]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 7), more=st.lists(st.integers(0, 1), max_size=2))
    def grow(self, data: st.DataObject, count: int, more: list[int]) -> None:
        i = data.draw(st.integers(0, len(self.running) - 1))
        state, tokens, length = self.running[i]
        tokens = tokens + more
        if length < len(tokens) and (end := self.write(state, tokens, length, count)) is not None:
            self.running[i] = (state, tokens, end)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        state, tokens, length = self.running[data.draw(st.integers(0, len(self.running) - 1))]
        self.running.append((self.manager.fork(state), tokens, length))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), swaps=st.booleans(), is_over=st.booleans())
    def preempt(self, data: st.DataObject, swaps: bool, is_over: bool) -> None:
        state, tokens, length = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if swaps and not is_over:
            self.copy(self.manager.swap_out(state, length))
        self.manager.release(state)
        if not is_over:
            self.waiting.append((state, tokens))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        state, _ = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        self.manager.forget_swapped(state)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.manager.check_integrity([state for state, *_ in self.running], [state for state, _ in self.waiting])
        assert 0 <= self.manager.usage <= 1

    def teardown(self) -> None:
        for state, *_ in self.running:
            self.manager.release(state)
        for state, _ in self.waiting:
            self.manager.forget_swapped(state)
        self.manager.check_idle()
