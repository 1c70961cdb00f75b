"""Endless sequences over compiled models: the right answer far beyond the context, in flat memory, the same bits in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cupola
from cupola.runtime.engine.attention_sinks import SinkWindow
from cupola.runtime.errors import OptionError
from tests.e2e.tiny_models import BOUND, SIZES, tiny_model

CONTEXT = SIZES["max_position_embeddings"]
OPTIONS: dict[str, Any] = {"attention_sinks": 4, "attention_window": 100}
KEPT = SinkWindow.of(4, 100, 16)  # 16 and 112, of which 16 are dropped at a time


def greedy(num_tokens: int, **more: Any) -> cupola.SamplingParams:
    return cupola.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, **more)


def prompts(*lengths: int) -> list[list[int]]:
    return [np.random.default_rng(length).integers(4, 250, length).tolist() for length in lengths]


def compiled(folder: Path, num_layers: int, **more: Any) -> tuple[Any, cupola.Artifact]:
    model = tiny_model("llama", **{**SIZES, "num_hidden_layers": num_layers})
    model.save_pretrained(folder / "model")
    return model, cupola.compile(folder / "model", out=folder / "artifact", quant="f32", target="cpu:batch-invariant", **more)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    return compiled(tmp_path_factory.mktemp("two-layers"), 2)[1]


def test_a_token_sees_the_sinks_right_before_the_window(tmp_path):
    """Of one layer, keys and values are a token's own: so logits are transformers' for the sinks and the window alone."""
    model, artifact = compiled(tmp_path, 1)
    (ids,) = prompts(3 * CONTEXT)
    found = cupola.LLM(artifact, **OPTIONS).logits(ids)
    for index in (0, 50, 127, 128, 129, 143, 144, 300, 500, 3 * CONTEXT - 1):
        first = KEPT.num_sinks + KEPT.num_dropped(index)
        seen = ids[: index + 1] if index < KEPT.num_sinks else ids[: KEPT.num_sinks] + ids[first : index + 1]
        with torch.no_grad():
            expected = np.asarray(model(input_ids=torch.tensor([seen]), use_cache=False).logits[0, -1])
        assert np.abs(found[index] - expected).max() < BOUND


def test_nothing_differs_while_nothing_is_forgotten(artifact):
    (ids,) = prompts(KEPT.num_kept)
    whole = cupola.LLM(artifact).logits(ids)
    assert np.array_equal(cupola.LLM(artifact, **OPTIONS).logits(ids), whole)


@pytest.mark.parametrize("num_scheduler_steps", [1, 8])
def test_memory_and_work_are_flat(artifact, num_scheduler_steps):
    llm, (ids,), num_tokens, held = (
        cupola.LLM(artifact, num_scheduler_steps=num_scheduler_steps, **OPTIONS),
        prompts(20),
        6 * CONTEXT,
        set(),
    )
    request = llm.engine.add_request("a", ids, greedy(num_tokens))
    (pool,) = llm.engine.scheduler.states.pools
    while not request.finished:
        llm.engine.step()
        if request.sequences[0].num_output_tokens > CONTEXT and not request.finished:
            held.add(pool.num_blocks - pool.num_free_blocks)
    assert max(held) == KEPT.num_kept // 16 and min(held) > (KEPT.num_kept - KEPT.hop) // 16 - 1
    assert request.sequences[0].num_output_tokens == num_tokens
    again = cupola.LLM(artifact, max_num_batched_tokens=23, **OPTIONS).generate([ids], greedy(num_tokens))
    assert again[0].outputs[0].token_ids == request.sequences[0].output_token_ids


def test_the_same_bits_in_any_company(artifact):
    batch, params = prompts(3, 100, 400, 130, 270), greedy(60, logprobs=2)
    alone = [out for ids in batch for out in cupola.LLM(artifact, enable_prefix_caching=False, **OPTIONS).generate([ids], params)]
    memory, num_preemptions = 18 * artifact.manifest.kv.bytes_per_block, 0
    for options in ({"swap_memory": "16MB"}, {"enable_prefix_caching": False}, {"max_num_batched_tokens": 37}):
        llm = cupola.LLM(artifact, kv_memory=memory, **options, **OPTIONS)
        for _ in range(2):
            outputs = llm.generate(batch, params)
            for found, expected in zip(outputs, alone, strict=True):
                assert found.outputs[0].token_ids == expected.outputs[0].token_ids
                assert found.outputs[0].logprobs == expected.outputs[0].logprobs
            num_preemptions += sum(output.metrics.num_preemptions for output in outputs if output.metrics)
        llm.engine.check_idle()
    assert num_preemptions > 0


def test_turns_go_on_past_the_context(artifact):
    llm, (text,) = cupola.LLM(artifact, **OPTIONS), prompts(30)
    for turn in range(8):
        (output,) = llm.generate([text], greedy(60))
        assert turn == 0 or output.num_cached_tokens >= len(text) - 24
        text = [*text, *output.outputs[0].token_ids, 7, 8, 9]
    assert len(text) > 2 * CONTEXT
    fresh = cupola.LLM(artifact, enable_prefix_caching=False, **OPTIONS).generate([text[:-63]], greedy(60))
    assert fresh[0].outputs[0].token_ids == text[-63:-3]


def test_models_that_see_positions_are_refused(tmp_path):
    tiny = {**SIZES, "n_positions": 256, "n_embd": 64, "n_layer": 1, "n_head": 4}
    tiny_model("gpt2", **{name: tiny[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}).save_pretrained(
        tmp_path / "model"
    )
    artifact = cupola.compile(tmp_path / "model", out=tmp_path / "artifact", quant="f32")
    assert not artifact.manifest.model.relative_positions
    with pytest.raises(OptionError, match="attention_window: can't be set: this model sees positions"):
        cupola.LLM(artifact, **OPTIONS)
