"""Preempted sequences come back as they were, from memory or from a disk that may be full."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cupola.runtime.artifact.arrays import numpy_dtype
from cupola.runtime.artifact.state import KVGroup, KVSpec
from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.device import swap_space
from cupola.runtime.device.swap_space import SwapSpace
from cupola.runtime.engine.block_pool import BlockTable, empty_table
from cupola.runtime.engine.engine import Engine
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.engine.swap_pool import SwapPool
from cupola.runtime.errors import EngineError, OptionError
from cupola.runtime.llm import LLM
from tests.runtime.fakes import VOCAB, completions, generate_alone, greedy_reference, make_engine, run_all
from tests.runtime.tiny_artifact import make_artifact

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def two_groups(dtype: str) -> KVSpec:
    """Two groups whose blocks lie along different axes."""
    first = (TensorSpec("keys", dtype, (2, "num_blocks", 3, 8, 4)), TensorSpec("values", dtype, ("num_blocks", 2, 3, 4, 4)))
    second = (TensorSpec("both", dtype, (2, 8, 4, "num_blocks")), TensorSpec("scales", "float32", (1, "num_blocks", 4)))
    return KVSpec((KVGroup((0, 2), 3, 8, 4, pools=first), KVGroup((1,), 1, 8, 8, pools=second)), dtype, 4)


KV = {dtype: two_groups(dtype) for dtype in ("float32", "float16", "bfloat16", "int8")}


def make_prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB - 1, length).tolist() for length in rng.integers(1, 30, count)]


def start(engine: Engine, prompts: list[list[int]]) -> None:
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, GREEDY)


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("num_swap_blocks", [0, 3, 40])
def test_what_is_put_aside_is_not_computed_again(caching, num_swap_blocks):
    engine, prompts = make_engine(12, num_swap_blocks, enable_prefix_caching=caching, max_num_seqs=8), make_prompts(8)
    start(engine, prompts)
    outputs, stats = run_all(engine), engine.stats()
    assert stats.num_preemptions > 0
    for i, prompt in enumerate(prompts):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 12, stop=False)
    num_needed = sum(len(prompt) + 11 for prompt in prompts)  # nobody reads the K/V of the last token
    num_again = engine.executor.num_tokens - num_needed
    assert (num_again == 0) == (num_swap_blocks == 40)
    if caching:
        assert stats.num_swapped_in <= stats.num_swapped_out
    else:
        assert stats.num_swapped_in == stats.num_swapped_out
    assert (stats.num_swapped_in > 0) == (num_swap_blocks > 0)


def test_blocks_that_the_prefix_cache_still_has_are_not_copied():
    engine, prompt = make_engine(16, 16, max_num_seqs=2, num_scheduler_steps=1), make_prompts(1)[0][:16]
    engine.add_request("first", prompt, GREEDY)
    engine.step()
    engine.step()
    scheduler = engine.scheduler
    (sequence,) = scheduler.running
    copies = scheduler._swap_out(sequence)
    scheduler._preempt(sequence)
    assert len(copies) == 5  # 17 tokens
    for group, source, target in copies:
        engine.executor.provide_swap(group, 16)
        engine.executor.pages[group][target] = engine.executor.pages[group][source]
    output = run_all(engine)["first"]
    assert (engine.stats().num_swapped_out, engine.stats().num_swapped_in) == (5, 1)  # four were full, and are known
    assert output.outputs[0].token_ids == greedy_reference(prompt, 12, stop=False)
    assert engine.executor.num_tokens == len(prompt) + 11


def run_until_swapped(engine: Engine) -> None:
    while not engine.stats().num_swapped_out or not any(sequence.state.swap_tables for sequence in engine.scheduler.waiting):
        engine.step()
        engine.scheduler.check_integrity()


def test_a_request_that_goes_away_frees_its_swap_blocks():
    engine, prompts = make_engine(12, 40, enable_prefix_caching=False, max_num_seqs=8), make_prompts(8)
    start(engine, prompts)
    run_until_swapped(engine)
    gone = [sequence.request.spec.request_id for sequence in engine.scheduler.waiting if sequence.state.swap_tables]
    for name in gone:
        engine.abort(name)
        engine.scheduler.check_integrity()
    assert engine.scheduler.states.swap_pools[0].num_free_blocks == 40
    outputs = run_all(engine)
    assert outputs.keys().isdisjoint(gone)


@pytest.mark.parametrize("fails", ["as it puts blocks aside", "as it brings them back"])
def test_a_failed_step_is_computed_again(fails):
    engine, prompts = make_engine(12, 40, enable_prefix_caching=False, max_num_seqs=8), make_prompts(8)
    start(engine, prompts)
    submit, sides, failed = engine.executor.submit, {"as it puts blocks aside": 1, "as it brings them back": 0}, []

    def fail_once(batch, sampling):
        if not failed and any(copy[1 + sides[fails]] >= 12 for copy in batch.copies):
            failed.append(batch.copies)
            engine.executor.num_failures = 1
        return submit(batch, sampling)

    engine.executor.submit = fail_once
    outputs = {}
    while engine.has_unfinished_requests():
        try:
            outputs.update({request.spec.request_id: request.output() for request in engine.step()})
        except EngineError as error:
            assert "on fire" in str(error)
            assert engine.scheduler.states.swap_pools[0].num_free_blocks == 40
        engine.scheduler.check_integrity()
    assert failed
    engine.check_idle()
    for i, prompt in enumerate(prompts):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 12, stop=False)


def test_copies_depend_on_their_order():
    """A block that is swapped out may be a copy made in the same step, and may be taken for one; both are rare."""
    wanted = {"a copy is put aside", "what was put aside is copied over"}
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        num_blocks, budget, max_num_seqs = (int(rng.integers(*bounds)) for bounds in ((10, 20), (3, 12), (3, 9)))
        engine = make_engine(num_blocks, 60, enable_prefix_caching=False, max_num_batched_tokens=budget, max_num_seqs=max_num_seqs)
        seen = watch_copies(engine)
        requests = {}
        for i in range(rng.integers(2, 7)):
            prompt, params = (
                rng.integers(0, VOCAB, rng.integers(1, 30)).tolist(),
                replace(GREEDY, n=int(rng.integers(1, 4)), seed=i, temperature=1),
            )
            requests[str(i)] = engine.add_request(str(i), prompt, params, priority=int(rng.integers(2)))
            for _ in range(rng.integers(6)):
                if engine.has_unfinished_requests():
                    engine.step()
        run_all(engine)
        if seen:
            wanted -= seen
            for request in requests.values():
                alone = generate_alone(list(request.spec.prompt_token_ids), request.spec.params)
                assert completions(request.output()) == alone
        if not wanted:
            return
    raise AssertionError(f"never seen: {wanted}")


def watch_copies(engine: Engine) -> set[str]:
    """Kinds of overlap among a step's copies, filled in as the engine runs."""
    submit, (num_blocks,), seen = engine.executor.submit, engine.executor.num_blocks, set()

    def watched(batch, sampling):
        copied, put_aside = set(), set()
        for _, source, target in batch.copies:
            if target >= num_blocks:
                put_aside.add(source)
                seen.update({"a copy is put aside"} if source in copied else ())
            elif source < num_blocks:
                copied.add(target)
                seen.update({"what was put aside is copied over"} if target in put_aside else ())
        return submit(batch, sampling)

    engine.executor.submit = watched
    return seen


def test_a_disk_that_fills_up_costs_time_and_nothing_else():
    engine, prompts = make_engine(12, 40, enable_prefix_caching=False, max_num_seqs=8), make_prompts(8)
    engine.executor.disk_is_full = True
    start(engine, prompts)
    outputs = run_all(engine)
    assert engine.stats().num_preemptions > 0
    assert engine.stats().num_swapped_out == 0
    for i, prompt in enumerate(prompts):
        assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 12, stop=False)


def test_the_integrity_check_sees_a_lost_block():
    pool, table = SwapPool(4, 10, lambda count: True), empty_table()
    assert pool.take(table, 2)
    pool.check_integrity([table])
    with pytest.raises(EngineError, match="swap block 10 has 0 holders, and is 0 times free"):
        pool.check_integrity([])
    with pytest.raises(EngineError, match="swap block 10 has 2 holders"):
        pool.check_integrity([table, table])


class SwapMachine(RuleBasedStateMachine):
    """Random use of the pool's verbs, over a disk that has room at times."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 20
        self.pool = SwapPool(20, 100, lambda count: count <= self.limit)
        self.tables: list[BlockTable] = []

    @rule(limit=st.integers(0, 20))
    def fill_disk(self, limit: int) -> None:
        self.limit = limit

    @rule(count=st.integers(0, 21))
    def take(self, count: int) -> None:
        table, free = empty_table(), self.pool.num_free_blocks
        if self.pool.take(table, count):
            assert len(table) == count == free - self.pool.num_free_blocks
            assert max(table) < 100 + self.limit
            self.tables.append(table)
        else:
            assert (len(table), self.pool.num_free_blocks) == (0, free)
            assert count > free or count == 0 or self.limit < 20

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity(self.tables)


TestSwapPool = SwapMachine.TestCase


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("dtype", KV)
def test_a_block_comes_back_as_it_went(dtype, on_disk, tmp_path):
    space = SwapSpace(KV[dtype], (3, 2), tmp_path if on_disk else None)
    assert list(tmp_path.iterdir()) == []
    rng, put = np.random.default_rng(0), {}
    for group, count in enumerate(space.num_blocks):
        assert space.provide(group, 1) and space.provide(group, count)
        shapes = [[(2, 3, 8, 4), (2, 3, 4, 4)], [(2, 8, 4), (1, 4)]][group]
        specs = list(zip(shapes, (numpy_dtype(pool.dtype) for pool in KV[dtype].pools_of(group, 1)), strict=True))
        for i in range(count):
            parts = space.block(group, i)
            assert [(part.shape, part.dtype) for part in parts] == specs
            put[group, i] = [rng.integers(-128, 128, part.shape).astype(part.dtype) for part in parts]
            for part, values in zip(parts, put[group, i], strict=True):
                part[...] = values
    for place, blocks in put.items():
        for part, values in zip(space.block(*place), blocks, strict=True):
            np.testing.assert_array_equal(part, values)


def test_room_on_the_disk_is_taken_before_it_is_written(tmp_path, monkeypatch):
    space, taken = SwapSpace(KV["int8"], (8, 8), tmp_path), []
    size, other = (KV["int8"].group_bytes_per_block(group) for group in range(2))

    def reserve(_file: object, start: int, length: int) -> None:
        if 4 * size < start + length <= 8 * size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append((start, length))

    monkeypatch.setattr(swap_space, "reserve", reserve)
    assert [space.provide(0, count) for count in (1, 3, 2, 5, 4, 8)] == [True, True, True, False, True, False]
    assert space.provide(1, 2)
    assert taken == [(0, size), (size, 2 * size), (3 * size, size), (8 * size, 2 * other)]


def test_bad_options_are_refused(tmp_path):
    artifact = make_artifact(tmp_path / "a")
    for options, message in [
        ({"swap_memory": "1"}, "swap_memory: is '1', less than one block"),
        ({"swap_memory": "lots"}, "swap_memory: is 'lots'"),
        ({"swap_memory": -1}, "swap_memory: is -1"),
        ({"swap_memory": 10**15}, "swap_memory: asks for"),
        ({"swap_folder": tmp_path}, "swap_folder: is of no use without swap_memory"),
        ({"swap_memory": "1MB", "swap_folder": tmp_path / "nowhere"}, "swap_folder: .*nowhere can't hold a file"),
        ({"swap_memory": 10**18, "swap_folder": tmp_path}, "swap_folder: .* can't hold a file"),
    ]:
        with pytest.raises(OptionError, match=message):
            LLM(artifact, **options)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_compiled_model_gives_the_same_answers(on_disk, tmp_path):
    artifact, params = make_artifact(tmp_path / "a"), replace(GREEDY, max_tokens=20, n=2, temperature=1, seed=1)
    prompts = [np.random.default_rng(i).integers(0, 256, length).tolist() for i, length in enumerate((1, 5, 30, 40, 3, 12))]
    expected = [[o.token_ids for o in output.outputs] for output in LLM(artifact).generate(prompts, params)]
    folder = tmp_path if on_disk else None
    llm = LLM(artifact, kv_memory=16 * 4 * 8, swap_memory="1MB", swap_folder=folder, enable_prefix_caching=False)
    assert [[o.token_ids for o in output.outputs] for output in llm.generate(prompts, params)] == expected
    assert llm.engine.stats().num_swapped_in > 0
    llm.engine.check_idle()
    assert [file.name for file in Path(tmp_path).iterdir()] == ["a"]
