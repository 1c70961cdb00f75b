"""Recurrent state: slots and checkpoints. Nothing is lost, a state is of exactly the tokens that it should be, and turns of a chat go on
from the latest checkpoint."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from cupola.runtime.engine.attention_sinks import choose_sink_window
from cupola.runtime.engine.engine import Engine
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.state_manager import Copies, State, StateManager
from cupola.runtime.errors import EngineError, OptionError
from tests.runtime.engine.schedules import Schedules, hashes
from tests.runtime.engine.test_state_manager import make_prompts
from tests.runtime.fakes import BLOCK, MODEL, completions, generate_alone, greedy_reference, make_engine, make_kv, run_all

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
RECURRENT_ONLY: tuple[int, ...] = ()


def make_manager(num_slots: int, windows: tuple[int, ...] = (0,), num_swap: int = 0, interval: int = 16) -> StateManager:
    counts = [40] * len(windows) + [num_slots], [num_swap] * (len(windows) + 1)
    return StateManager(
        make_kv(windows, True), *counts, lambda group, count: True, max_num_new_tokens=64, checkpoint_interval=interval
    )  # fmt: skip


def compute(manager: StateManager, state: State, tokens: list[int], start: int = 0) -> list[int]:
    """Takes the tokens from `start` on in; returns where the chunks ended."""
    ends = []
    while start < len(tokens):
        end = min(len(tokens), start + manager.most_new_tokens(start, len(tokens)))
        assert manager.reserve(state, start, end) is not None
        manager.publish(state, end // BLOCK, hashes(tokens[:end]))
        manager.keep(state, end, len(tokens), hashes(tokens[:end]))
        manager.advance(state, end)
        ends.append(start := end)
    return ends


def test_a_prompt_is_cut_where_checkpoints_are_wanted():
    manager, state = make_manager(8), State()
    manager.begin(state, [])
    assert compute(manager, state, list(range(43))) == [16, 32, 40, 43]
    names = hashes(list(range(43)))
    assert [i + 1 for i, name in enumerate(names) if manager.slots.pool.knows(name)] == [4, 8, 10]
    manager.check_integrity([state], [])
    manager.release(state)
    manager.check_idle()


def test_a_decoding_sequence_keeps_its_latest_checkpoint_and_those_of_the_grid():
    manager, state, tokens = make_manager(8), State(), list(range(10))
    manager.begin(state, [])
    compute(manager, state, tokens)
    for length in range(11, 39):
        compute(manager, state, list(range(length)), length - 1)
    names = hashes(list(range(40)))
    assert [i + 1 for i, name in enumerate(names) if manager.slots.pool.knows(name)] == [2, 4, 8, 9]  # prompt, grid, grid, latest
    manager.release(state)
    assert manager.slots.longest_hit(names, 10, manager.slots.pool.knows) == 9
    manager.check_idle()


def test_a_prefix_is_found_as_far_as_a_checkpoint():
    manager, first, tokens = make_manager(8), State(), list(range(43))
    manager.begin(first, [])
    compute(manager, first, tokens)
    for wanted, expected in ((43, 10), (40, 10), (39, 8), (31, 4), (15, 0)):
        state = State()
        assert manager.begin(state, hashes(tokens[:wanted])) == expected
        manager.check_integrity([first, state], [])
        manager.release(state)
    edited, state = [*tokens[:20], 99, *tokens[21:]], State()
    assert manager.begin(state, hashes(edited)) == 4
    copies = manager.reserve(state, 16, 20)
    assert len(copies) == 1 and copies[0][0] == 1 and copies[0][2] == state.slot[0]  # the checkpoint stays as it is
    assert manager.slots.pool.knows(hashes(tokens)[3])


def test_without_a_free_slot_a_checkpoint_is_written_over():
    manager, state = make_manager(1), State()
    manager.begin(state, [])
    assert compute(manager, state, list(range(43))) == [16, 32, 40, 43]
    assert manager.slots.pool.num_free_blocks == 0
    assert not any(map(manager.slots.pool.knows, hashes(list(range(43)))))
    other = State()
    manager.begin(other, [])
    assert not manager.has_room(other, 4, 0) and manager.reserve(other, 0, 4) is None
    manager.release(other)
    manager.release(state)
    manager.check_idle()


def test_the_least_recently_used_checkpoint_goes_first():
    manager, names = make_manager(5, RECURRENT_ONLY), []
    for i in range(6):
        tokens = [i] * 9
        manager.begin(state := State(), [])
        compute(manager, state, tokens)
        manager.release(state)
        names.append(hashes(tokens))
        if i == 3:
            manager.begin(state, names[0])
            manager.release(state)
    assert [manager.slots.longest_hit(name, 2, manager.slots.pool.knows) for name in names] == [2, 0, 0, 2, 2, 2]


def test_without_a_cache_no_chunk_is_cut():
    kv = make_kv((0,), True)
    manager = StateManager(kv, (9, 2), (0, 0), lambda *_: True, max_num_new_tokens=64, enable_prefix_caching=False)
    assert manager.most_new_tokens(0, 1000) > 1000


def test_sinks_are_refused():
    with pytest.raises(OptionError, match="carries a state from token to token"):
        choose_sink_window(4, 16, MODEL, make_kv((0,), True))


class SlotMachine(Schedules):
    """Random schedules over a paged and a recurrent group, whose slots hold the tokens that they have taken in."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = StateManager(
            make_kv((0,), True), (20, 5), (9, 2), lambda group, count: True, max_num_new_tokens=7, checkpoint_interval=12
        )
        self.memory: list[list[int]] = [[-1]] * 7

    def copy(self, copies: Copies) -> None:
        for group, source, target in copies:
            if group == 1:
                self.memory[target] = self.memory[source]

    def write(self, state: State, tokens: list[int], start: int, count: int) -> int | None:
        end = min(len(tokens), start + count, start + self.manager.most_new_tokens(start, len(tokens)))
        copies = self.manager.reserve(state, start, end)
        if copies is None:
            return None
        self.copy(copies)
        (slot,) = state.slot
        assert start == 0 or self.memory[slot] == tokens[:start]
        self.memory[slot] = tokens[:end]
        self.manager.publish(state, end // BLOCK, hashes(tokens[:end]))
        self.manager.keep(state, end, len(tokens), hashes(tokens[:end]))
        self.manager.advance(state, end)
        return end

    def check_begun(self, state: State, tokens: list[int], length: int) -> None:
        assert length == 0 or self.memory[state.slot[0]] == tokens[:length]


TestSlots = SlotMachine.TestCase


@pytest.mark.parametrize("windows", [(0,), (0, 6), RECURRENT_ONLY])
@pytest.mark.parametrize("num_swap", [0, 60])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("num_slots", [1, 3, 30])
def test_an_engine_gives_the_same_with_a_recurrent_state(windows, num_swap, caching, num_slots):
    """Prompts in chunks, several steps at once, preempted and swapped sequences: the fake model sees every wrong state."""
    prompts = make_prompts([1, 5, 9, 30, 33, 20, 2, 17])
    settings = {"max_num_batched_tokens": 16, "max_num_seqs": 8, "enable_prefix_caching": caching, "checkpoint_interval": 12}
    engine = make_engine([13] * len(windows) + [num_slots], num_swap, windows, True, **settings)
    for _ in range(2):
        for i, prompt in enumerate(prompts):
            engine.add_request(str(i), prompt, GREEDY)
        outputs = run_all(engine)
        for i, prompt in enumerate(prompts):
            assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 12, stop=False)


@pytest.mark.parametrize("num_slots", [1, 3, 30])
def test_several_completions_share_a_prompt(num_slots):
    params, (prompt,) = SamplingParams(n=4, seed=7, max_tokens=14, ignore_eos=True), make_prompts([21])
    engine = make_engine([40, num_slots], 0, (0,), True, max_num_batched_tokens=16)
    engine.add_request("a", prompt, params)
    assert completions(run_all(engine)["a"]) == generate_alone(prompt, params)


def chat(engine: Engine, num_turns: int, said: int = 9) -> list[int]:
    """A chat of so many turns; returns its tokens, each answer checked."""
    rng, tokens = np.random.default_rng(0), list[int]()
    for turn in range(num_turns):
        tokens += rng.integers(0, 50, said).tolist()
        engine.add_request(str(turn), tokens, SamplingParams(temperature=0, max_tokens=7, ignore_eos=True))
        answer = run_all(engine)[str(turn)].outputs[0].token_ids
        assert answer == greedy_reference(tokens, 7, stop=False)
        tokens += answer
    return tokens


@pytest.mark.parametrize("windows", [(0,), RECURRENT_ONLY])
def test_turns_of_a_chat_compute_each_token_once(windows, monkeypatch):
    """Up to the beginning of the block in which a turn begins."""
    monkeypatch.setattr("tests.runtime.fakes.MODEL", MODEL.__class__("fake", 1000, MODEL.vocab_size, MODEL.stop_token_ids))
    engine = make_engine([100] * len(windows) + [6], 0, windows, True, max_num_batched_tokens=64)
    tokens = chat(engine, 20)
    assert len(tokens) == 20 * 16
    num_computed = engine.executor.num_tokens
    assert len(tokens) - 20 <= num_computed <= len(tokens) + 20 * BLOCK
    edited = [*tokens[:200], (tokens[200] + 1) % 50, *tokens[201:310]]  # an edit in the middle goes on from the checkpoint before it
    engine.add_request("edited", edited, GREEDY)
    output = run_all(engine)["edited"]
    assert output.outputs[0].token_ids == greedy_reference(edited, 12, stop=False)


def test_an_edit_goes_on_from_the_nearest_checkpoint():
    engine = make_engine([40, 10], 0, (0,), True, checkpoint_interval=8)
    (prompt,) = make_prompts([30])
    for name, tokens, cached in (("first", prompt, 0), ("edited", [*prompt[:20], 59, *prompt[21:]], 16), ("again", prompt, 28)):
        engine.add_request(name, tokens, GREEDY)
        output = run_all(engine)[name]
        assert output.num_cached_tokens == cached
        assert output.outputs[0].token_ids == greedy_reference(tokens, 12, stop=False)


def test_a_failed_step_is_computed_again():
    engine = make_engine([40, 10], 0, (0,), True)
    (prompt,) = make_prompts([30])
    engine.add_request("a", prompt, GREEDY)
    for failing in range(4):
        engine.executor.num_failures = failing % 2
        with pytest.raises(EngineError, match="on fire") if failing % 2 else nullcontext():
            engine.step()
    assert run_all(engine)["a"].outputs[0].token_ids == greedy_reference(prompt, 12, stop=False)
