"""A first request before the first: what comes to memory, or is made, when it is needed first, then keeps nobody waiting."""

from __future__ import annotations

from dataclasses import replace

from cupola.runtime.artifact.manifest import ModelConfig
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.interface import Executor
from cupola.runtime.engine.engine import Engine, EngineConfig
from cupola.runtime.engine.sampling_params import SamplingParams
from cupola.runtime.text.tokenizer import Tokenizer

NUM_TOKENS = 8  # of the prompt: more than a decode step has


def warm_up(executor: Executor, model: ModelConfig, kv: KVSpec, config: EngineConfig, tokenizer: Tokenizer | None) -> None:
    """Answers a short prompt by an engine of its own, of which nothing is left: weights are read from the disk, graphs captured.

    Call it before another engine has the executor's blocks.
    """
    alone = replace(config, enable_prefix_caching=False, speculative=None, max_tokens_per_second=None)
    engine = Engine(executor, model, kv, alone, tokenizer)
    num_tokens = min(NUM_TOKENS, model.context_length - 2)
    if num_tokens > 0:
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, detokenize=tokenizer is not None)
        engine.add_request("warm-up", [0] * num_tokens, params)
        while engine.has_unfinished_requests():
            engine.step()
    engine.close()
