"""What one step of the engine asks of the executor and gets, and nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from cupola.runtime.artifact.inputs import MAXIMA_BLOCK

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class Batch(NamedTuple):
    """All sequences' new tokens, flat and without padding (n tokens, b sequences, r rows that want logits).

    A sequence's tokens are `query_starts[i]` to `query_starts[i + 1]`; `context_lens[i]` counts all its tokens with
    the new ones. Each state group has its own slots and block tables. `slots` says where each token's K/V goes: block id ×
    block size + offset. `block_tables` is padded with 0, which also stands for blocks behind the group's window. `copies`
    are (group, from, to) blocks to copy, in order, before anything runs: copy-on-write, and K/V that goes to the swap space
    or comes back from there, whose blocks' ids go on where those of the group's pages end.
    """

    tokens: Int32  # [n]
    positions: Int32  # [n]
    slots: tuple[Int32, ...]  # of each group, [n]
    query_starts: Int32  # [b + 1]
    context_lens: Int32  # [b]
    block_tables: tuple[Int32, ...]  # of each group, [b, max_blocks]
    logit_rows: Int32  # [r], indices into the n tokens
    copies: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Logits:
    """What a run gives.

    Attributes:
        values: f32 [r, vocab], of the last step.
        maxima: f32 [r, blocks], the largest of every MAXIMA_BLOCK neighbours in a row. A block that holds NaN has NaN for its largest.
        argmax: i32 [at least as many as there were steps, r], the likeliest token of each row, the last step's last; -1 where one of
            the row's logits is NaN.
    """

    values: Float32
    maxima: Float32
    argmax: Int32

    @classmethod
    def of(cls, values: Float32) -> Self:
        """Of one step, for an executor that finds nothing itself."""
        maxima = np.maximum.reduceat(values, np.arange(0, values.shape[1], MAXIMA_BLOCK), axis=1)
        return cls(values, maxima, np.where(np.isnan(maxima).any(axis=1), -1, values.argmax(axis=1)).astype(np.int32)[None])


class Executor(Protocol):
    """Runs the model; the engine's only view of it."""

    num_blocks: tuple[int, ...]  # of each group
    num_swap_blocks: tuple[int, ...]  # of each group
    max_steps: int  # that one run may take

    def provide_swap(self, group: int, num_blocks: int) -> bool:
        """Makes sure that the first `num_blocks` swap blocks of a group can be written; False if there is no room for them after all."""
        ...

    def run(self, batch: Batch, num_steps: int = 1) -> Logits:
        """Appends the batch's K/V to the pages and returns the logits of `logit_rows`, which the next call may overwrite.

        A batch in which every sequence brings one token and wants its logits may take several steps: each goes on with the likeliest
        tokens of the one before, in the blocks that follow in `block_tables`.
        """
        ...
