"""The prefix cache on disk: the next engine goes on where one stopped, for all kinds of groups, and whatever became of the files."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from cupola.runtime.device.block_store import BlockStore
from cupola.runtime.engine import stored_prefixes
from cupola.runtime.engine.engine import Engine
from cupola.runtime.engine.sampling_params import SamplingParams
from tests.runtime.fakes import BLOCK, VOCAB, greedy_reference, make_engine, run_all

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
GROUPS = pytest.mark.parametrize("groups", [{}, {"windows": (0, 8)}, {"recurrent": True}, {"windows": (), "recurrent": True}])


def make(folder: Path, num_blocks: int = 64, **settings: object) -> Engine:
    return make_engine(num_blocks, block_store=BlockStore(folder, 1 << 30, b"k" * 16), **settings)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB - 1, length).tolist()


def answer(engine: Engine, prompt: list[int]) -> tuple[list[int], int]:
    """The tokens that follow, and how many of the prompt's were computed."""
    before = engine.executor.num_tokens
    engine.add_request("a", prompt, GREEDY)
    output = run_all(engine)["a"]
    return output.outputs[0].token_ids, engine.executor.num_tokens - before - len(output.outputs[0].token_ids) + 1


@GROUPS
def test_the_next_engine_computes_only_what_is_new(tmp_path, groups):
    prompt = prompt_of(22)
    first = make(tmp_path, **groups)
    tokens, num_computed = answer(first, prompt)
    assert tokens == greedy_reference(prompt, 6, stop=False) and num_computed == 22
    first.close()
    turn = [*prompt, *tokens, 1, 2, 3]  # 27 tokens have K/V: 6 blocks are whole
    second = make(tmp_path, **groups)
    again, num_computed = answer(second, turn)
    assert again == greedy_reference(turn, 6, stop=False)
    assert num_computed == len(turn) - 6 * BLOCK == second.scheduler.num_prefix_queries - second.scheduler.num_prefix_hits
    assert second.stats().num_loaded > 0 == second.stats().num_preemptions
    second.check_idle()


@GROUPS
def test_an_edit_keeps_what_stands_before_it(tmp_path, groups):
    prompt = prompt_of(30)
    first = make(tmp_path, checkpoint_interval=BLOCK, **groups)
    answer(first, prompt)
    first.close()
    edited = [*prompt[:17], 7, *prompt[18:]]
    second = make(tmp_path, checkpoint_interval=BLOCK, **groups)
    tokens, num_computed = answer(second, edited)
    assert tokens == greedy_reference(edited, 6, stop=False) and num_computed == 30 - 4 * BLOCK


@GROUPS
def test_a_salt_keeps_users_apart(tmp_path, groups):
    first, second = make(tmp_path, **groups), make(tmp_path, **groups)
    first.add_request("a", prompt_of(22), GREEDY, cache_salt=b"one")
    run_all(first)
    first.close()
    second.add_request("a", prompt_of(22), GREEDY, cache_salt=b"two")
    run_all(second)
    assert second.stats().num_prefix_hits == 0


@GROUPS
@pytest.mark.parametrize("seed", range(6))
def test_random_schedules_over_a_folder_that_loses_files(tmp_path, groups, seed):
    """Three engines after one another, short of blocks, of which files are damaged, lost and too large in between."""
    rng = random.Random(seed)
    heads = [prompt_of(rng.randrange(8, 24), i) for i in range(3)]
    for _ in range(3):
        engine = make(tmp_path, rng.choice((14, 20, 40)), max_num_seqs=4, checkpoint_interval=2 * BLOCK, **groups)
        prompts = [[*rng.choice(heads), *prompt_of(rng.randrange(1, 12), rng.randrange(5))] for _ in range(8)]
        waiting = list(enumerate(prompts))
        outputs = {}
        while waiting or engine.has_unfinished_requests():
            while waiting and rng.random() < 0.4:
                i, prompt = waiting.pop()
                engine.add_request(str(i), prompt, GREEDY)
            for request in engine.step():
                outputs[request.spec.request_id] = request.output()
            engine.scheduler.check_integrity()
        for i, prompt in enumerate(prompts):
            assert outputs[str(i)].outputs[0].token_ids == greedy_reference(prompt, 6, stop=False)
        engine.check_idle()
        engine.close()
        for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
            if rng.random() < 0.3:
                file.write_bytes(rng.choice([b"", file.read_bytes()[:-1], file.read_bytes()[:-3] + b"abc", file.read_bytes() + b"1"]))
            elif rng.random() < 0.1:
                file.unlink()


def test_a_block_that_went_from_the_disk_is_saved_again_when_it_is_of_use(tmp_path):
    engine, prompt = make(tmp_path), prompt_of(22)
    answer(engine, prompt)
    engine.close()
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        file.unlink()
    answer(engine, prompt)  # from memory
    engine.close()
    assert answer(make(tmp_path), prompt)[1] == 22 - 5 * BLOCK


def test_what_is_not_read_at_the_start_is_read_when_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_prefixes, "WARM_SECONDS", -1.0)
    first, prompt = make(tmp_path), prompt_of(22)
    answer(first, prompt)
    first.close()
    second = make(tmp_path)
    assert second.stats().num_loaded == 0
    assert answer(second, prompt) == (greedy_reference(prompt, 6, stop=False), 22 - 5 * BLOCK)
    assert second.stats().num_loaded == 5


def test_without_a_folder_nothing_is_written(tmp_path):
    engine = make_engine()
    answer(engine, prompt_of(22))
    assert engine.stored is None and not list(tmp_path.iterdir())
