"""What one step of the engine asks of the executor, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """All sequences' new tokens, flat and without padding (n tokens, b sequences, r rows that want logits).

    A sequence's tokens are `query_starts[i]` to `query_starts[i + 1]`; `context_lens[i]` counts all its tokens with
    the new ones. `slots` says where each token's K/V goes: block id × block size + offset. `block_tables` is padded
    with 0. `copies` are (from, to) blocks to copy, in order, before anything runs (copy-on-write).
    """

    tokens: Int32  # [n]
    positions: Int32  # [n]
    slots: Int32  # [n]
    query_starts: Int32  # [b + 1]
    context_lens: Int32  # [b]
    block_tables: Int32  # [b, max_blocks]
    logit_rows: Int32  # [r], indices into the n tokens
    copies: tuple[tuple[int, int], ...] = ()


class Executor(Protocol):
    """Runs the model; the engine's only view of it."""

    num_blocks: int

    def run(self, batch: Batch) -> Float32:
        """Appends the batch's K/V to the pages and returns logits, f32 [r, vocab]."""
        ...
