"""Models that carry a state from token to token: the same tokens however they are cut into steps, in any company, after preemption, as
forks and in a chat's next turn, which goes on from a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

import cupola
from cupola.models import find_family
from cupola.runtime.artifact.state import KVSpec
from tests.e2e.tiny_models import tiny_model

BLOCK = 16  # tokens: checkpoints are at multiples
GREEDY = cupola.SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module", params=["lfm2", pytest.param("qwen3_5_text", marks=pytest.mark.by_turns(together="qwen3_5_text"))])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> cupola.Artifact:
    folder, family = tmp_path_factory.mktemp(request.param), find_family(request.param)
    assert family is not None
    tiny_model(family.model_type, **{**family.tiny, "max_position_embeddings": 1024}).save_pretrained(folder / "model")
    return cupola.compile(folder / "model", out=folder / "artifact", quant="f32", target="cpu:batch-invariant")


def prompts(*lengths: int) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(3, 250, length).tolist() for length in lengths]


def tokens_of(llm: cupola.LLM, given: list[list[int]], params: cupola.SamplingParams = GREEDY) -> list[list[list[int]]]:
    found = [[list(completion.token_ids) for completion in output.outputs] for output in llm.generate(given, params)]
    llm.engine.check_idle()
    return found


@pytest.fixture(scope="module")
def alone(artifact: cupola.Artifact) -> list[list[list[int]]]:
    """The tokens of eight prompts, one after the other, each in one piece."""
    llm = cupola.LLM(artifact, enable_prefix_caching=False, num_scheduler_steps=1)
    return [tokens_of(llm, [prompt])[0] for prompt in prompts(*LENGTHS)]


LENGTHS = (100, 1, 64, 7, 33, 150, 16, 5)


@pytest.mark.parametrize("step_tokens", [1, 7, 64])
@pytest.mark.parametrize("caching", [False, True])
def test_chunks_and_company_change_no_token(artifact, alone, step_tokens, caching):
    """Eight sequences at once, but where a step has room for one token."""
    llm = cupola.LLM(artifact, max_num_batched_tokens=step_tokens, max_num_seqs=8, enable_prefix_caching=caching)
    assert tokens_of(llm, prompts(*LENGTHS)) == alone
    assert tokens_of(llm, prompts(*LENGTHS)) == alone  # now from checkpoints, and over slots that others left


@pytest.mark.parametrize("swap_memory", [0, "1MB"])
def test_preemption_changes_no_token(artifact, alone, swap_memory, monkeypatch):
    monkeypatch.setattr("cupola.runtime.load_engine.choose_num_blocks", lambda *_: (14, 2))
    llm = cupola.LLM(artifact, max_num_seqs=8, swap_memory=swap_memory)
    assert tokens_of(llm, prompts(*LENGTHS)) == alone
    stats = llm.engine.stats()
    assert stats.num_preemptions > 0 and (stats.num_swapped_in > 0) == bool(swap_memory)


def test_forks_go_their_own_ways(artifact):
    """Sampled completions of one prompt, which share what was computed of it, are those that the prompt gives each alone."""
    (prompt,) = prompts(37)
    params = cupola.SamplingParams(n=4, seed=5, temperature=1.0, max_tokens=20, ignore_eos=True, detokenize=False)
    many = tokens_of(cupola.LLM(artifact), [prompt], params)[0]
    tight = cupola.LLM(artifact, kv_memory=_memory(artifact.manifest.kv, 12, 3), enable_prefix_caching=False)
    assert tokens_of(tight, [prompt], params)[0] == many
    assert len({tuple(tokens) for tokens in many}) > 1


def _memory(kv: KVSpec, num_blocks: int, num_slots: int) -> int:
    return kv.num_bytes([num_blocks] * len(kv.paged) + [num_slots])


def test_a_chat_computes_each_token_once(artifact):
    """Twenty turns, each from the start of the block it begins in; and one after an edit in the middle, from the checkpoint before it."""
    llm, fresh = (cupola.LLM(artifact, enable_prefix_caching=caching, checkpoint_interval=64) for caching in (True, False))
    random, said, history = np.random.default_rng(1), 9, list[int]()
    for _ in range(20):
        history += random.integers(3, 250, said).tolist()
        answer = tokens_of(llm, [history])[0][0]
        assert answer == tokens_of(fresh, [history])[0][0]
        history += answer
    num_tokens = 20 * (said + GREEDY.max_tokens)
    assert len(history) == num_tokens
    computed = llm.engine.stats().num_step_tokens
    assert num_tokens - 20 <= computed <= num_tokens + 20 * BLOCK
    assert fresh.engine.stats().num_step_tokens > 5 * computed
    edited = [*history[:300], (history[300] + 1) % 250, *history[301:500]]
    (output,) = llm.generate([edited], GREEDY)
    assert output.num_cached_tokens >= 300 - 64
    assert list(output.outputs[0].token_ids) == tokens_of(fresh, [edited])[0][0]


def test_the_state_takes_the_same_memory_at_any_length(artifact):
    kv = artifact.manifest.kv
    group = kv.recurrent
    assert group is not None
    assert len({kv.most_blocks(length, 512)[group] for length in (1, 100, 1000, 100000)}) == 1
    llm = cupola.LLM(artifact, kv_memory=_memory(kv, 64, 2), max_num_seqs=1)
    assert llm.engine.executor.num_blocks[group] == 2
    assert len(tokens_of(llm, prompts(900))[0][0]) == 20


def test_attention_sinks_are_refused(artifact):
    with pytest.raises(cupola.OptionError, match="carries a state from token to token"):
        cupola.LLM(artifact, attention_sinks=4, attention_window=64)
