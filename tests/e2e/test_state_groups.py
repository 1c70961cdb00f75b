"""Gemma 3's pattern of layers over a long context: what blocks behind windows cost no more, and that nobody notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cupola
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.engine.engine import Engine
from cupola.runtime.engine.state_manager import StateManager
from tests.e2e.tiny_models import tiny_model

CONTEXT, WINDOW, LAYERS = 8192, 512, 6
FULL = range(5, LAYERS, 6)  # as in the model of 270 M parameters: every sixth layer sees everything
SIZES = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_hidden_layers": LAYERS, "sliding_window": WINDOW, "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "layer_types": ["full_attention" if i in FULL else "sliding_attention" for i in range(LAYERS)],
}  # fmt: skip
PARAMS = cupola.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    folder = tmp_path_factory.mktemp("gemma3")
    tiny_model("gemma3_text", **SIZES).save_pretrained(folder / "model")
    return cupola.compile(folder / "model", out=folder / "artifact", quant="f32", target="cpu:batch-invariant")


def prompts(*lengths: int) -> list[list[int]]:
    return [np.random.default_rng(length).integers(3, 256, length).tolist() for length in lengths]


@pytest.fixture
def keep_all(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets engines that are made from then on keep all blocks, as a group without a window does."""

    def patch() -> None:
        monkeypatch.setattr(StateManager, "_drop_unseen", lambda *_: None)
        monkeypatch.setattr(KVSpec, "most_held", lambda *_: None)

    return patch


def num_bytes_held(engine: Engine, kv: KVSpec) -> int:
    pools = engine.scheduler.states.pools
    return sum((pool.num_blocks - pool.num_free_blocks) * kv.group_bytes_per_block(i) for i, pool in enumerate(pools))


def run(engine: Engine, prompt: list[int], kv: KVSpec) -> tuple[list[int], int, int]:
    """The tokens, the most bytes of K/V in use, and those in use at the end."""
    request, most = engine.add_request("a", prompt, PARAMS), 0
    while not request.finished:
        last = num_bytes_held(engine, kv)
        engine.step()
        most = max(most, num_bytes_held(engine, kv))
    engine.check_idle()
    return list(request.sequences[0].output_token_ids), most, last


def test_8k_of_context_take_a_third_of_the_memory_and_give_the_same_bits(artifact, keep_all):
    kv, (prompt,) = artifact.manifest.kv, prompts(CONTEXT - 32)
    assert sorted((group.window, len(group.layers)) for group in kv.groups) == [(0, 1), (WINDOW, 5)]
    # How many tokens come at once depends on the machine's speed, and so would what is held before the last step.
    one_by_one = {"max_num_seqs": 2, "num_scheduler_steps": 1, "enable_prefix_caching": False}
    llm = cupola.LLM(artifact, **one_by_one)
    tokens, most, last = run(llm.engine, prompt, kv)
    logits = llm.logits(prompt)
    keep_all()
    before = cupola.LLM(artifact, **one_by_one)
    same_tokens, most_before, last_before = run(before.engine, prompt, kv)
    assert last_before == most_before == CONTEXT // kv.block_size * kv.bytes_per_block
    print(f"K/V at 8k: {most / most_before:.1%} at most, {last / last_before:.1%} while it decodes")
    assert most < most_before / 3 and last < last_before / 4
    assert tokens == same_tokens
    assert np.array_equal(logits, before.logits(prompt))


def test_company_and_memory_do_not_change_a_bit(artifact):
    """Preempted, swapped, cached and several at once: the tokens, and their log-probabilities, of prompts around the window."""
    batch, kv = prompts(500, 3, 460, 1500, 700), artifact.manifest.kv
    params = cupola.SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False, logprobs=2)
    alone = [out for prompt in batch for out in cupola.LLM(artifact, enable_prefix_caching=False).generate([prompt], params)]
    blocks = [65 if group.window else 150 for group in kv.groups]  # of the window: as many as one sequence needs
    memory = sum(kv.group_bytes_per_block(i) * count for i, count in enumerate(blocks))
    num_preemptions = 0
    for options in ({"swap_memory": "16MB"}, {"enable_prefix_caching": False}, {"max_num_batched_tokens": 96}):
        llm = cupola.LLM(artifact, kv_memory=memory, **options)
        for _ in range(2):
            outputs = llm.generate(batch, params)
            for found, expected in zip(outputs, alone, strict=True):
                assert found.outputs[0].token_ids == expected.outputs[0].token_ids
                assert found.outputs[0].logprobs == expected.outputs[0].logprobs
            num_preemptions += sum(output.metrics.num_preemptions for output in outputs if output.metrics)
        llm.engine.check_idle()
    assert num_preemptions > 0


def test_several_steps_at_once_and_a_second_turn(artifact):
    (prompt,), greedy = prompts(600), cupola.SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)
    one = cupola.LLM(artifact, num_scheduler_steps=1, enable_prefix_caching=False).generate([prompt], greedy)[0].outputs[0].token_ids
    llm = cupola.LLM(artifact, num_scheduler_steps=8)
    assert llm.generate([prompt], greedy)[0].outputs[0].token_ids == one
    assert llm.engine.stats().num_steps > llm.engine.scheduler.num_preemptions
    second = [*prompt, *one, 5, 6]
    (output,) = llm.generate([second], greedy)
    assert output.num_cached_tokens >= 600
    expected = cupola.LLM(artifact, enable_prefix_caching=False).generate([second], greedy)[0].outputs[0].token_ids
    assert output.outputs[0].token_ids == expected


def test_the_memory_goes_where_sequences_can_use_it(artifact: cupola.Artifact, tmp_path: Path) -> None:
    kv = artifact.manifest.kv
    full = next(i for i, group in enumerate(kv.groups) if not group.window)
    window, most = 1 - full, kv.most_blocks(CONTEXT, 512)
    size = [kv.group_bytes_per_block(i) for i in range(2)]
    one = sum(size[i] * most[i] for i in range(2))  # sequence of a full context
    for memory, num_seqs in ((10**9, 4), (2 * one, 4), (2 * one, 1), (one, 4), (one // 2, 4), (20 * sum(size), 4)):
        num_blocks = cupola.LLM(artifact, kv_memory=memory, max_num_seqs=num_seqs).engine.executor.num_blocks
        used = sum(size[i] * num_blocks[i] for i in range(2))
        assert used <= memory
        assert used > memory - sum(size) or num_blocks == tuple(num_seqs * count for count in most)
        assert num_blocks[full] >= min(most[full], (memory - size[window] * most[window]) // size[full])  # the longest sequence
        if memory == 2 * one and num_seqs == 4:
            assert most[window] < num_blocks[window] <= num_seqs * most[window] and num_blocks[full] >= most[full]
        if memory < one // 3:
            assert num_blocks == (20, 20)
