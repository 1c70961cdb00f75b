"""Which tokens the repetition, presence and frequency penalties look at, and what the first one multiplies by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cupola.runtime.engine.sampling_params import SamplingParams

Int64 = npt.NDArray[np.int64]


class Seen(NamedTuple):
    """Tokens, each once and in ascending order."""

    repeated: Int64  # whose logits the repetition penalty changes
    counted: Int64  # whose logits presence and frequency change
    counts: Int64  # how often those came


def find_seen(params: SamplingParams, token_ids: Sequence[int], num_prompt_tokens: int) -> Seen:
    """For repetition prompt and output, for presence and frequency the output; with `repeat_last_n` only the last tokens."""
    num_tokens = len(token_ids)
    first = 0 if params.repeat_last_n < 0 else max(0, num_tokens - params.repeat_last_n)
    counted, counts = np.unique(np.array(token_ids[max(first, num_prompt_tokens) :], np.int64), return_counts=True)
    return Seen(np.unique(np.array(token_ids[first:], np.int64)), counted, counts)


def repetition_factors(logits: npt.NDArray[np.floating], penalty: float) -> npt.NDArray[np.floating]:
    """The factor by which each logit becomes less likely: 1/`penalty` for positive ones, else `penalty`."""
    return np.where(logits > 0, 1 / penalty, penalty).astype(logits.dtype)
