"""How well a model predicts a text: perplexity, and how far another model's predictions are from it.

Perplexity is exp of the mean −log p of the scored tokens. Which tokens are scored, and after how much context, is
defined in two ways:

- as llama.cpp's `perplexity` does (default): windows side by side, the second half of each is scored, so that every scored
  token has at least half a window before it. What is left at the end of the text is dropped.
- as transformers' documentation does (`stride`): windows that move by `stride` tokens; each scores what no window before
  it held, so that with `stride` less than the window every token of the text but the first is scored once.

The comparison is llama.cpp's `--kl-divergence`: on the scored positions, the mean of KL(reference || model), and how often
both find the same token the most likely.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cupola.runtime.device.interface import Float32
from cupola.runtime.errors import EngineError, OptionError
from cupola.runtime.llm import LLM

DEFAULT_CONTEXT = 512  # tokens a window, as in llama.cpp
MIN_CONTEXT = 4
MAX_TEXT_TOKENS = 1 << 26
LARGEST_EXPONENT = 700
ROWS_AT_ONCE = 64  # of logits: float64 copies of a whole window would be large
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens, or a function of one, and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference, on the same tokens.

    Attributes:
        perplexity: the reference's.
        perplexity_ratio: the model's perplexity divided by the reference's.
        kl_divergence: mean of KL(reference || model) over positions, nats.
        same_top: how often both find the same token the most likely, 0 to 1.
    """

    perplexity: Estimate
    perplexity_ratio: Estimate
    kl_divergence: Estimate
    same_top: Estimate


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. `stride` is None for windows side by side; `num_tokens` is the whole text's."""

    perplexity: Estimate
    num_tokens: int
    num_scored_tokens: int
    num_windows: int
    context: int
    stride: int | None
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `end` of the text, of which those from `first` on are scored."""

    start: int
    end: int
    first: int


def evaluate(
    llm: LLM,
    text: str | Sequence[int],
    *,
    context: int | None = None,
    stride: int | None = None,
    max_windows: int | None = None,
    reference: LLM | None = None,
    on_window: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Scores a text, or its token ids, with `llm`, and with `reference` on the same tokens.

    Args:
        context: tokens a window; by default 512, or what the models take if that is less.
        stride: tokens that a window moves on; None puts windows side by side and scores second halves.
        max_windows: stop after this many windows; None is the whole text.
        reference: compare with this model.
        on_window: called with (windows done, windows in all) after each one.

    Raises:
        OptionError: a number is out of range, or the models have different vocabularies.
        RequestError: the text is too short, or there is no tokenizer for it.
        EngineError: a model's logits are not numbers.
    """
    models = [llm] if reference is None else [llm, reference]
    context = _check_context(context, models)
    for name, value, highest in (("stride", stride, context), ("max-windows", max_windows, 2**31)):
        if value is not None and not 1 <= value <= highest:
            raise OptionError(f"is {value}, not from 1 to {highest}", field=name, fix="give one in that range")
    token_ids = _token_ids(text, models)
    windows = list(find_windows(len(token_ids), context, stride))[:max_windows]
    if not windows:
        least = context if stride is None else 2
        raise OptionError(
            f"has {len(token_ids)} tokens, and a window needs {least}", field="text", fix="give a longer one, or a smaller context"
        )
    scores = []
    for number, window in enumerate(windows, 1):
        scores.append(_score(models, token_ids, window))
        if on_window is not None:
            on_window(number, len(windows))
    table = np.concatenate(scores, axis=1)
    comparison = None if reference is None else _compare(table)
    return Evaluation(_perplexity(table[0]), len(token_ids), table.shape[1], len(windows), context, stride, comparison)


def find_windows(num_tokens: int, context: int, stride: int | None) -> Iterator[Window]:
    """The windows of a text, in order; see the module's text for the two ways."""
    if stride is None:
        for start in range(0, num_tokens - context + 1, context):
            yield Window(start, start + context, start + context // 2 + 1)
        return
    scored = 0
    for start in range(0, num_tokens, stride):
        end, first = min(start + context, num_tokens), max(scored, start + 1)  # nothing in a window predicts its first token
        if end > first:
            yield Window(start, end, first)
        scored = end
        if end == num_tokens:
            return


def _check_context(context: int | None, models: Sequence[LLM]) -> int:
    limit = min(model.engine.validator.max_length for model in models)
    if context is None:
        context = min(DEFAULT_CONTEXT, limit)
    if not MIN_CONTEXT <= context <= limit:
        fix = "give one in that range" if limit >= MIN_CONTEXT else "compile the model with more context"
        raise OptionError(f"is {context}, not from {MIN_CONTEXT} to {limit}", field="context", fix=fix)
    return context


def _token_ids(text: str | Sequence[int], models: Sequence[LLM]) -> list[int]:
    """The text's tokens, which must be the same for all models. A BOS token stands in front if the tokenizer puts one there."""
    sizes = {model.artifact.manifest.model.vocab_size for model in models}
    if len(sizes) > 1:
        found = " and ".join(str(model.artifact.manifest.model.vocab_size) for model in models)
        raise OptionError(f"the vocabularies have {found} tokens", field="reference", fix="give an artifact of the same model")
    if not isinstance(text, str):
        return list(text)
    encoded = []
    for model in models:
        if model.tokenizer is None:
            raise OptionError("has no tokenizer", file=model.artifact.path, fix="compile a model that comes with one")
        encoded.append(model.tokenizer.encode(text, max_tokens=MAX_TEXT_TOKENS))
    if any(other != encoded[0] for other in encoded[1:]):
        raise OptionError("its tokenizer cuts the text differently", field="reference", fix="give an artifact of the same model")
    return encoded[0]


def _score(models: Sequence[LLM], token_ids: list[int], window: Window) -> Float64:
    """A column for each scored token: −log p by the model and, with a reference, −log p by that, KL divergence, same top."""
    ids = token_ids[window.start : window.end]
    if token_ids[0] == models[0].artifact.manifest.model.bos_token_id:
        ids[0] = token_ids[0]  # models are used to it; llama.cpp does the same
    before = slice(window.first - window.start - 1, len(ids) - 1)  # the row of a token predicts the one after it
    targets = np.array(token_ids[window.first : window.end])
    logits = [model.logits(ids)[before] for model in models]
    parts = range(0, len(targets), ROWS_AT_ONCE)
    scores = [_score_rows([rows[i : i + ROWS_AT_ONCE] for rows in logits], targets[i : i + ROWS_AT_ONCE]) for i in parts]
    return np.concatenate(scores, axis=1)


def _score_rows(logits: list[Float32], targets: npt.NDArray[np.int64]) -> Float64:
    log_probs = [_log_softmax(rows) for rows in logits]
    chosen = [-rows[np.arange(len(targets)), targets] for rows in log_probs]
    if not all(np.isfinite(values).all() for values in chosen):
        raise EngineError("the model's logits are not numbers (NaN)")
    if len(log_probs) == 1:
        return np.array(chosen)
    model, reference = log_probs
    divergence = (np.exp(reference) * (reference - model)).sum(axis=1)
    return np.array([*chosen, divergence, model.argmax(axis=1) == reference.argmax(axis=1)])


def _log_softmax(logits: Float32) -> Float64:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _compare(table: Float64) -> Comparison:
    model, reference, divergence, same_top = table
    return Comparison(_perplexity(reference), _perplexity(model - reference), _mean(divergence), _mean(same_top))


def _perplexity(negative_log_probs: Float64) -> Estimate:
    """exp of the mean; the error is carried over to first order."""
    mean = _mean(negative_log_probs)
    value = math.exp(mean.value) if mean.value < LARGEST_EXPONENT else math.inf
    return Estimate(value, value * mean.standard_error)


def _mean(values: Float64) -> Estimate:
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)
