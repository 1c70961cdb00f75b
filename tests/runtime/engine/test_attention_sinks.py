"""Endless sequences: what a token sees depends on its index alone, memory is flat, and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.runtime.engine.attention_sinks import SinkWindow, choose_sink_window
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.errors import EngineError, OptionError
from tests.runtime.fakes import BLOCK, CONTEXT, MODEL, VOCAB, FakeExecutor, completions, greedy_reference, make_engine, make_kv, run_all

SINKS = SinkWindow.of(3, 30, BLOCK)  # a block, and eight blocks of which one is dropped at a time
OPTIONS = {"attention_sinks": 3, "attention_window": 30}


def make_prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB - 1, length).tolist() for length in lengths]


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


def test_whole_blocks_are_kept():
    assert SinkWindow(4, 32, 4) == SINKS
    assert SinkWindow.of(0, 1, 16) == SinkWindow(16, 16, 16)
    assert SinkWindow.of(4, 1024, 16) == SinkWindow(16, 1024, 128)
    assert SinkWindow.of(1, 3, 1) == SinkWindow(2, 3, 1)


@given(sinks=st.integers(0, 20), window=st.integers(1, 90), block=st.sampled_from([1, 4, 16]), index=st.integers(0, 500))
def test_a_token_sees_itself_and_at_most_the_window(sinks, window, block, index):
    kept = SinkWindow.of(sinks, window, block)
    first = kept.num_sinks + kept.num_dropped(index)  # of the window
    assert kept.num_dropped(index) % block == 0 <= kept.num_dropped(index) <= kept.num_dropped(index + 1)
    if index >= kept.num_sinks:
        assert 1 <= index + 1 - first <= kept.window
    if kept.num_dropped(index):
        assert index + 1 - first > kept.window - kept.hop
    alike = kept.num_alike(index)
    assert alike >= 1
    assert kept.num_dropped(index + alike - 1) == kept.num_dropped(index) < kept.num_dropped(index + alike)


def test_nothing_differs_while_nothing_is_forgotten():
    (prompt,) = make_prompts(20)
    engine = make_engine(**OPTIONS)
    engine.add_request("a", prompt, greedy(16))
    assert run_all(engine)["a"].outputs[0].token_ids == greedy_reference(prompt, 16, stop=False)


@pytest.mark.parametrize("num_scheduler_steps", [1, 8])
def test_memory_is_flat_far_beyond_the_context(num_scheduler_steps):
    (prompt,), most = make_prompts(9), 0
    engine = make_engine(64, num_scheduler_steps=num_scheduler_steps, enable_prefix_caching=False, **OPTIONS)
    request = engine.add_request("a", prompt, greedy(10 * CONTEXT))
    (pool,) = engine.scheduler.states.pools
    while engine.has_unfinished_requests():
        engine.step()
        engine.scheduler.check_integrity()
        most = max(most, pool.num_blocks - pool.num_free_blocks)
    engine.check_idle()
    assert most == SINKS.num_kept // BLOCK
    assert request.sequences[0].output_token_ids == greedy_reference(prompt, 10 * CONTEXT, stop=False, sinks=SINKS)
    # A run of the sinks each time the window moves on, and nothing else beside the tokens.
    num_tokens = 9 + 10 * CONTEXT - 1
    assert engine.executor.num_tokens == num_tokens + SINKS.num_sinks * (SINKS.num_dropped(num_tokens - 1) // SINKS.hop)


@pytest.mark.parametrize("num_swap", [0, 100])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("budget", [3, 64])
def test_tokens_are_the_same_in_any_company(num_swap, caching, budget):
    """Prompts in chunks, longer than the context too, beside each other in a pool for two of them."""
    prompts = make_prompts(1, 5, 9, 17, 90, 130, 40)
    engine = make_engine(20, num_swap, max_num_batched_tokens=budget, max_num_seqs=6, enable_prefix_caching=caching, **OPTIONS)
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, greedy(50))
    outputs = run_all(engine)
    for i, prompt in enumerate(prompts):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 50, stop=False, sinks=SINKS)
    assert engine.stats().num_preemptions > 0
    assert (engine.stats().num_swapped_in > 0) == (num_swap > 0)


@pytest.mark.parametrize("length", [21, 70])
def test_completions_of_a_prompt_share_it(length):
    (prompt,), params = make_prompts(length), SamplingParams(n=4, seed=7, max_tokens=40, ignore_eos=True)
    found = []
    for num_blocks in (100, 15):
        engine = make_engine(num_blocks, **OPTIONS)
        engine.add_request("a", prompt, params)
        found.append(completions(run_all(engine)["a"]))
    assert found[0] == found[1]


def test_the_next_turn_computes_what_is_new_and_the_sinks():
    engine, (text,) = make_engine(**OPTIONS), make_prompts(9)
    for turn in range(12):
        num_before = engine.executor.num_tokens
        engine.add_request(str(turn), text, greedy(20))
        output = run_all(engine)[str(turn)]
        assert output.outputs[0].token_ids == greedy_reference(text, 20, stop=False, sinks=SINKS)
        if turn:
            assert output.num_cached_tokens >= len(text) - 12
            assert engine.executor.num_tokens - num_before <= 12 + 20 + 8 * SINKS.num_sinks
        text = [*text, *output.outputs[0].token_ids, 1, 2, 3]
    assert len(text) > 5 * CONTEXT


def test_a_failed_step_forgets_nothing_wrong():
    engine, (prompt,) = make_engine(**OPTIONS), make_prompts(50)
    request = engine.add_request("a", prompt, greedy(60))
    for _ in range(200):
        if not engine.has_unfinished_requests():
            break
        engine.executor.num_failures = int(engine.executor.num_steps % 5 == 0)
        try:
            engine.step()
        except EngineError as error:
            assert "on fire" in str(error)
        engine.scheduler.check_integrity()
    assert request.sequences[0].output_token_ids == greedy_reference(prompt, 60, stop=False, sinks=SINKS)


def test_bad_options_name_the_field_and_the_fix():
    kv, absolute = make_kv(), replace(MODEL, relative_positions=False)
    for arguments, message in [
        ((4, None, MODEL, kv), "attention_sinks: is of no use without attention_window"),
        ((None, 16, MODEL, kv), "attention_window: is of no use without attention_sinks"),
        ((4, 16, absolute, kv), "attention_window: can't be set: this model sees positions"),
        ((4, 16, MODEL, make_kv((0, 6))), r"attention_window: .* windows of their own \(6\)"),
        ((4, 45, MODEL, kv), "attention_window: is 45, and with 4 sinks more than the context of 48 tokens .*give at most 44"),
    ]:
        with pytest.raises(OptionError, match=message):
            choose_sink_window(*arguments)
    assert choose_sink_window(None, None, absolute, kv) is None
    for options in ({"attention_sinks": -1, "attention_window": 8}, {"attention_sinks": 1, "attention_window": 0}):
        with pytest.raises(OptionError, match="attention_"):
            EngineConfig(**options)


def test_the_note_says_what_is_forgotten():
    assert SINKS.note == "of a longer text the first 4 tokens and the latest 28 to 32 are kept; what lies between is forgotten"


def test_a_prompt_may_be_longer_than_the_context_but_not_endless():
    executor = FakeExecutor()
    assert Engine(executor, MODEL, executor.kv, EngineConfig(**OPTIONS)).validator.max_length == 2**22
    small = FakeExecutor(5)  # one sequence does not fit
    assert Engine(small, MODEL, small.kv, EngineConfig(**OPTIONS)).validator.max_length == 20
