"""State groups: blocks behind a window come back, prefixes are found as far as every group has them, and nothing is lost."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.state_manager import Copies, State, StateManager
from cupola.runtime.errors import EngineError
from tests.runtime.engine.schedules import Schedules, hashes
from tests.runtime.fakes import BLOCK, VOCAB, greedy_reference, make_engine, make_kv, run_all

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def make_manager(windows: tuple[int, ...], num_blocks: int = 40, num_swap: int = 0, chunk: int = 8) -> StateManager:
    counts = [num_blocks] * len(windows), [num_swap] * len(windows)
    return StateManager(make_kv(windows), *counts, lambda group, count: True, max_num_new_tokens=chunk)


def compute(manager: StateManager, state: State, tokens: list[int], start: int = 0) -> None:
    """Takes the tokens from `start` on in, in chunks."""
    for at in range(start, len(tokens), 8):
        end = min(at + 8, len(tokens))
        assert manager.reserve(state, at, end) is not None
        manager.publish(state, end // BLOCK, hashes(tokens[:end]))
        manager.advance(state, end)


def num_held(manager: StateManager) -> list[int]:
    return [pool.num_blocks - pool.num_free_blocks for pool in manager.pools]


def started(manager: StateManager, tokens: list[int]) -> tuple[State, int]:
    state = State()
    length = manager.begin(state, hashes(tokens))
    compute(manager, state, tokens, length * BLOCK)
    return state, length


@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 13, 30, 100])
def test_a_window_holds_what_it_sees(length):
    """The next token's query sees itself and the six tokens before it."""
    manager = make_manager((0, 7))
    state, _ = started(manager, list(range(length)))
    first = max(0, length - 6) // BLOCK
    assert num_held(manager) == [-(-length // BLOCK), -(-length // BLOCK) - first]
    assert state.starts == [0, first]
    manager.check_integrity([state], [])
    manager.release(state)
    manager.check_idle()


def test_most_held_is_never_exceeded_and_sometimes_reached():
    kv = make_kv((0, 7))
    for chunk in (1, 2, 5, 8):
        most, found = kv.most_held(1, chunk), 0
        for first in range(1, chunk + 1):
            manager, at = make_manager((0, 7), 60, chunk=chunk), 0
            state = State()
            manager.begin(state, [])
            for count in [first, *[chunk] * 20]:
                assert manager.reserve(state, at, at + count) is not None
                found = max(found, num_held(manager)[1])
                at += count
                manager.advance(state, at)
        assert found == most
    assert (kv.most_held(0, 8), kv.most_blocks(30, 8), kv.most_blocks(5, 8)) == (None, (8, 5), (2, 2))


def test_a_hit_needs_only_what_the_window_sees():
    manager, tokens = make_manager((0, 7)), list(range(40))
    first, _ = started(manager, tokens)
    manager.release(first)
    second, length = started(manager, [*tokens, 1, 2, 3])
    assert length == 10 and second.starts[1] >= 8
    manager.release(second)
    manager.check_idle()


def test_a_hit_is_as_long_as_every_group_can_serve():
    manager, tokens = make_manager((0, 7), 14), list(range(40))
    first, _ = started(manager, tokens)
    manager.release(first)
    taken = [manager.pools[1]._take() for _ in range(4 + 8)]  # the unused ones, then those that the window left first
    for wanted, expected in [(tokens, 10), (tokens[:36], 0), (tokens[:16], 0), ([*tokens[:36], 1, 2, 3, 4], 0)]:
        state = State()
        assert manager.begin(state, hashes(wanted)) == expected
        manager.release(state)
    for block in taken:
        manager.pools[1]._drop(block)
    manager.check_idle()


def test_windows_of_two_sizes_agree_on_a_length():
    """A length that one group serves and another does not is no hit; a shorter one that both serve is."""
    manager, tokens = make_manager((7, 20)), list(range(60))
    state, _ = started(manager, tokens)
    manager.release(state)
    names = hashes(tokens)
    for group, missing in ((0, 12), (1, 7)):  # seen after blocks 13 and 14; seen after blocks 8 to 12
        pool = manager.pools[group]
        pool._hash_of.pop(block := pool._block_of.pop(names[missing]))
        del pool._cached[block]
        pool._unused.append(block)
    state = State()
    assert [manager.begin(state, names[:length]) for length in (15, 14, 13, 12, 9, 7) if not manager.release(state)] == [15, 7, 7, 7, 7, 7]


def test_a_verb_changes_all_groups_or_none():
    manager = StateManager(make_kv((0, 0)), (4, 2), (2, 1), lambda group, count: True, max_num_new_tokens=8)
    state = State()
    manager.begin(state, [])
    assert manager.reserve(state, 0, 12) is None
    assert num_held(manager) == [0, 0]
    assert manager.reserve(state, 0, 8) == []
    assert manager.swap_out(state, 8) == []  # two blocks of the second group, which has one swap block
    manager.check_integrity([state], [State()])
    assert not manager.reserve_all([(state, 8)], 1)
    assert num_held(manager) == [2, 2]


def test_the_longest_sequence_is_that_of_the_groups_that_keep_everything():
    kv = make_kv((0, 7))

    def longest(*num_blocks: int) -> int | None:
        return StateManager(kv, num_blocks, (0, 0), lambda group, count: True, max_num_new_tokens=8).max_length

    assert longest(10, kv.most_held(1, 8)) == 40
    assert longest(10, 3) == 12
    assert StateManager(make_kv((7,)), (5,), (0,), lambda group, count: True, max_num_new_tokens=8).max_length is None


def test_a_leak_in_any_group_is_seen():
    manager = make_manager((0, 7))
    state, _ = started(manager, list(range(30)))
    state.starts[1] += 1
    with pytest.raises(EngineError, match="has 1 references, 0 holders"):
        manager.check_integrity([state], [])
    with pytest.raises(EngineError, match="blocks are still held"):
        manager.check_idle()


class StateMachine(Schedules):
    """Random schedules over a full group and two windows, whose blocks hold (index, token): what a token sees must always be there."""

    windows = (0, 5, 14)

    def __init__(self) -> None:
        super().__init__()
        self.manager = StateManager(make_kv(self.windows), (14, 6, 9), (9, 3, 6), lambda group, count: True, max_num_new_tokens=7)
        self.memory = [np.full((pool.num_blocks + swap.num_blocks, BLOCK, 2), -1) for pool, swap in
                       zip(self.manager.pools, self.manager.swap_pools, strict=True)]  # fmt: skip

    def copy(self, copies: Copies) -> None:
        for group, source, target in copies:
            self.memory[group][target] = self.memory[group][source]

    def write(self, state: State, tokens: list[int], start: int, count: int) -> int | None:
        end = min(len(tokens), start + count)
        copies = self.manager.reserve(state, start, end)
        if copies is None:
            return None
        self.copy(copies)
        for memory, table in zip(self.memory, state.tables, strict=True):
            for i in range(start, end):
                memory[table[i // BLOCK], i % BLOCK] = i, tokens[i]
        self.check(state, tokens, start, end)
        self.manager.publish(state, end // BLOCK, hashes(tokens[:end]))
        self.manager.advance(state, end)
        return end

    def check(self, state: State, tokens: list[int], start: int, end: int) -> None:
        """Every token from `start` on sees what it must, in every group."""
        for memory, table, window in zip(self.memory, state.tables, self.windows, strict=True):
            for i in range(max(0, start - window + 1) if window else 0, end):
                assert memory[table[i // BLOCK], i % BLOCK].tolist() == [i, tokens[i]]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 7))
    def draft(self, data: st.DataObject, count: int) -> None:
        """Computes tokens that do not come, and gives their blocks back."""
        state, _, length = self.running[data.draw(st.integers(0, len(self.running) - 1))]
        copies = self.manager.reserve(state, length, length + count)
        if copies is not None:
            self.copy(copies)
            for memory, table in zip(self.memory, state.tables, strict=True):
                for i in range(length, length + count):
                    memory[table[i // BLOCK], i % BLOCK] = i, -7
            self.manager.cut(state, length)
            assert all(len(table) <= -(-length // BLOCK) for table in state.tables)

    @invariant()
    def holes_are_not_needed(self) -> None:
        for state, tokens, length in self.running:
            for memory, table, window in zip(self.memory, state.tables, self.windows, strict=True):
                for i in range(max(0, length - window + 1) if window else 0, length):
                    assert memory[table[i // BLOCK], i % BLOCK].tolist() == [i, tokens[i]]


TestStates = StateMachine.TestCase


def make_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB - 1, length).tolist() for length in lengths]


@pytest.mark.parametrize("windows", [(0, 6), (6, 0, 11), (6,), (1, 0)])
@pytest.mark.parametrize("num_swap", [0, 60])
@pytest.mark.parametrize("caching", [False, True])
def test_an_engine_gives_the_same_over_any_groups(windows, num_swap, caching):
    """Prompts in chunks, several steps at once, preempted and swapped sequences: the fake model sees every wrong block."""
    prompts = make_prompts([1, 5, 9, 30, 33, 20, 2, 17])
    engine = make_engine(13, num_swap, windows, max_num_batched_tokens=16, max_num_seqs=8, enable_prefix_caching=caching)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, GREEDY)
    outputs = run_all(engine)
    for i, prompt in enumerate(prompts):
        expected = greedy_reference(prompt, 12, stop=False, window=0 if 0 in windows else max(windows))
        assert outputs[str(i)].outputs[0].token_ids == expected
    assert engine.stats().num_preemptions > 0 or windows == (6,)
    assert (engine.stats().num_swapped_in > 0) == (num_swap > 0 and windows != (6,))


@pytest.mark.parametrize("windows", [(0, 6), (6,)])
def test_several_completions_share_a_prompt_over_groups(windows):
    params = SamplingParams(n=4, seed=7, max_tokens=14, ignore_eos=True)
    (prompt,) = make_prompts([21])
    found = []
    for num_blocks, budget in ((200, 64), (14, 16)):
        engine = make_engine(num_blocks, 0, windows, max_num_batched_tokens=budget)
        engine.add_request("a", prompt, params)
        found.append([output.token_ids for output in run_all(engine)["a"].outputs])
    assert found[0] == found[1]


def test_a_second_turn_is_found_behind_the_window():
    engine, (first,) = make_engine(windows=(0, 6)), make_prompts([21])
    engine.add_request("first", first, GREEDY)
    second = [*first, *run_all(engine)["first"].outputs[0].token_ids, 1, 2, 3]
    engine.add_request("second", second, GREEDY)
    output = run_all(engine)["second"]
    assert output.num_cached_tokens == 32
    assert output.outputs[0].token_ids == greedy_reference(second, 12, stop=False)


def test_tables_keep_the_index_of_a_token():
    manager = make_manager((7,))
    state, _ = started(manager, list(range(30)))
    assert len(state.tables[0]) == 8 and state.tables[0][:6] == array("i", [0] * 6)
