"""One case as a tiny random checkpoint: compiled in f32, and compared with transformers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from layouts import misbound
from sweeps import Sweep, Tiny
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import cupola
from cupola.compiler.frontend.text_path import without_timm
from cupola.runtime.errors import InputError

BOUND = 1e-4  # of a logit, and of how far below the largest one a greedily chosen token may lie
LENGTHS, NUM_DECODED = (7, 40), 8  # tokens; the longer prompt is more than the largest step
STEP_TOKENS, HIGHEST_ID = 32, 250
MAX_PARAMETERS = 30_000_000
GREEDY = cupola.SamplingParams(temperature=0, max_tokens=NUM_DECODED, ignore_eos=True, detokenize=False)


@dataclass(frozen=True)
class Result:
    """The result of one case.

    Attributes:
        name: the case.
        outcome: "match", "refused" (by an error of cupola's for bad or unsupported input), "wrong" (it compiled, and its
            logits or tokens are others), "failed" (it raised something else, died or took too long) or "no reference"
            (transformers itself doesn't run the tiny model, or it isn't causal).
        reason: the first line of what was raised, with the field and without the file; "" for a match.
        error: the largest difference of a logit, if it ran.
        seconds: processor time from the source to the artifact or the refusal.
    """

    name: str
    outcome: str
    reason: str = ""
    error: float | None = None
    seconds: float = 0.0


def run_case(sweep: Sweep, name: str, folder: Path) -> Result:
    """Runs one case in this process; `folder` is empty and for it alone. Raises nothing but what ends processes."""
    try:
        tiny = sweep.tiny(name)
        with without_timm():
            model, vocab_size = _make_model(tiny)
        prompts = _prompts(vocab_size)
        references = [_logits(model, prompt) for prompt in prompts]
        _check_causal(model, prompts[-1], references[-1])
        model.save_pretrained(folder / "model")
    except Exception as error:  # noqa: BLE001  whatever transformers raises, it leaves nothing to compare with
        return Result(name, "no reference", first_line(error))
    start = time.process_time()
    try:
        artifact = cupola.compile(folder / "model", out=folder / "artifact", quant="f32")
        made = replace(Result(name, "wrong"), seconds=round(time.process_time() - start, 1))
        llm = cupola.LLM(artifact, max_num_seqs=3, max_num_batched_tokens=STEP_TOKENS, kv_memory="64MB")
        compared = _compare(made, llm, model, prompts, references)
        problem = misbound(model, folder) if sweep.has_layouts and compared.outcome == "match" else ""
        return replace(compared, outcome="wrong", reason=problem) if problem else compared
    except InputError as error:
        return Result(name, "refused", _reason(error, tiny.model_type), seconds=round(time.process_time() - start, 1))
    except Exception as error:  # noqa: BLE001  the table shows it
        return Result(name, "failed", f"{type(error).__name__}: {first_line(error)}", seconds=round(time.process_time() - start, 1))


def _reason(error: InputError, model_type: str) -> str:
    """The field and the message, without the file, whose name differs from run to run."""
    message = error.message.splitlines()[0][:300]
    return f"{error.field}: {message}" if error.field not in (None, model_type) else message


def first_line(error: BaseException) -> str:
    """The first line that says something, of 200 characters at most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _make_model(tiny: Tiny) -> tuple[Any, int]:
    config = CONFIG_MAPPING[tiny.model_type](**tiny.fields)
    auto = getattr(transformers, tiny.auto_class)
    with torch.device("meta"):
        sizes = auto.from_config(config, dtype=torch.float32)
    if (count := sum(value.numel() for value in sizes.parameters())) > MAX_PARAMETERS:
        raise ValueError(f"the tiny configuration makes {count:,} parameters")
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for value in model.parameters():  # biases and norms start out at 0 and 1, which hides mistakes
            value.add_(0.05 * torch.randn_like(value))
        for name, value in model.named_buffers():
            if "correction_bias" in name:
                value.add_(0.05 * torch.randn_like(value))
    return model, int(config.get_text_config().vocab_size)


def _prompts(vocab_size: int) -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(4, min(vocab_size, HIGHEST_ID), length).tolist() for length in LENGTHS]


def _logits(model: Any, token_ids: Sequence[int]) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(token_ids)]), use_cache=False).logits[0].float().numpy()


def _check_causal(model: Any, prompt: list[int], expected: Any) -> None:
    """Raises ValueError if another last token changes what comes before it."""
    changed = _logits(model, [*prompt[:-1], prompt[-1] - 1])
    if (difference := float(np.abs(changed[:-1] - expected[:-1]).max())) > BOUND:
        raise ValueError(f"it is not causal: a later token changes earlier logits by {difference:.1e}")


def _compare(made: Result, llm: cupola.LLM, model: Any, prompts: list[list[int]], references: list[Any]) -> Result:
    error = max(float(np.abs(llm.logits(prompt) - expected).max()) for prompt, expected in zip(prompts, references, strict=True))
    if not error < BOUND:
        return replace(made, error=error, reason=f"logits differ by {error:.1e}")
    for prompt, output in zip(prompts, llm.generate(prompts, GREEDY), strict=True):
        chosen = list(output.outputs[0].token_ids)
        rows = _logits(model, prompt + chosen[:-1])[len(prompt) - 1 :]
        gap = max(float(row.max() - row[token]) for row, token in zip(rows, chosen, strict=True))
        if not gap < BOUND:
            return replace(made, error=error, reason=f"a decoded token is {gap:.1e} below the most likely")
    return replace(made, outcome="match", error=error)
