"""Tiny random models as checkpoints, for tests of what is compiled of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cupola
from cupola.models import find_family


def save_tiny(folder: Path, family: str) -> Path:
    """A random model of a family's tiny configuration, in float32; always the same one. Gives its folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **find_family(family).tiny)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def answers_as_transformers(llm: cupola.LLM, folder: Path, prompts: Sequence[list[int]], params: cupola.SamplingParams) -> None:
    """Logits of prompts, and tokens and log-probabilities that are decoded greedily in a batch, are those of transformers within 1e-4."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True):
        chosen, steps = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        assert steps is not None
        with torch.no_grad():
            expected = model(torch.tensor([prompt + chosen[:-1]])).logits[0].double()
        assert np.abs(llm.logits(prompt) - expected[: len(prompt)].numpy()).max() < 1e-4
        rows = expected[len(prompt) - 1 :].log_softmax(-1).numpy()
        assert [int(row.argmax()) for row in rows] == chosen
        for row, step in zip(rows, steps, strict=True):
            assert max(abs(row[token] - entry.logprob) for token, entry in step.items()) < 1e-4
