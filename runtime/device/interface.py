"""A step, as the engine submits it and gets it back, and devices, as executors use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from cupola.runtime.artifact.folder import Artifact
from cupola.runtime.artifact.state import KVSpec
from cupola.runtime.device.swap_space import SwapSpace

Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class Batch(NamedTuple):
    """All sequences' new tokens, flat and without padding (n tokens, b sequences, r rows that want logits).

    A sequence's tokens are `query_starts[i]` to `query_starts[i + 1]`; `context_lens[i]` counts all its tokens with
    the new ones. Each state group has its own slots and block tables. `slots` says where each token's K/V goes: block id ×
    block size + offset. `block_tables` is padded with 0, which also stands for blocks behind the group's window. `copies`
    are (group, from, to) blocks to copy, in order, before anything runs: copy-on-write, and K/V that goes to the swap space
    or comes back from there, whose blocks' ids go on where those of the group's pages end. `draws` say how rows' tokens are drawn by an
    executor that `draws_tokens` (`artifact/inputs.py` has the columns); None: all are the likeliest. A recurrent group has neither slots
    nor tables but, by its number, the slot of each sequence's state; a sequence whose tokens are all new starts from zeros there.
    """

    tokens: Int32  # [n]
    positions: Int32  # [n]
    slots: tuple[Int32, ...]  # of each paged group, [n]
    query_starts: Int32  # [b + 1]
    context_lens: Int32  # [b]
    block_tables: tuple[Int32, ...]  # of each paged group, [b, max_blocks]
    logit_rows: Int32  # [r], indices into the n tokens
    copies: tuple[tuple[int, int, int], ...] = ()
    draws: Int32 | None = None  # [r, DRAW_COLUMNS]
    state_slots: Mapping[int, Int32] = MappingProxyType({})  # of a recurrent group, [b, 2]: to read from and to write to


class SamplingPlan(NamedTuple):
    """The uses of a step's logits, so that a device may choose tokens itself and keep logits that nobody reads.

    The model takes `num_steps`, each after the first on the tokens of the one before, in the blocks that follow in `block_tables`: more
    than one only if every sequence brings one token and wants its logits. Of the last step the host reads logits or maxima of `rows`,
    and takes the model's tokens of the others.

    With `num_layers` only so many of the model's first layers run, and then its last norm and vocabulary projection: K and V of the
    others are not written.
    """

    num_steps: int = 1
    rows: tuple[int, ...] = ()
    num_layers: int | None = None


class StepOutput(Protocol):
    """A step's results, for the host to read until the next one is submitted. Rows are those of the batch's `logit_rows`."""

    def argmax(self) -> Int32:
        """The token of each row, i32 [at least as many as there were steps, r], the last step's last; -1 where a logit is NaN.

        It is the likeliest, or what the batch's `draws` drew.
        """
        ...

    def row(self, index: int) -> Float32:
        """The logits of one row, f32 [vocab]."""
        ...

    def rows(self, indices: Sequence[int]) -> Float32:
        """The logits of some rows, f32 [rows, vocab]."""
        ...

    def hidden(self, index: int) -> Float32:
        """The hidden state of one row, f32 [hidden], of artifacts that were compiled to give it. Raises EngineError for others."""
        ...

    def maxima(self, index: int) -> Float32:
        """The largest of every MAXIMA_BLOCK neighbours in a row of logits, f32 [blocks]; NaN where one of them is."""
        ...


class StepHandle(Protocol):
    """A step under way."""

    def result(self) -> StepOutput:
        """Waits for the step's end. Raises EngineError if the model failed."""
        ...


class Executor(Protocol):
    """Runs the model; the engine's only view of it."""

    num_blocks: tuple[int, ...]  # of each group
    num_swap_blocks: tuple[int, ...]  # of each group
    max_steps: int  # that a sampling plan may ask for
    num_layers: int  # of the model, fewer of which a sampling plan may ask for; 0: it can't run fewer
    draws_tokens: bool  # whether it heeds a batch's `draws`
    rounds_many: bool  # whether rows of a step may have other bits where there are more than a few (`engine/speculation.py`: FEW_ROWS)

    def provide_swap(self, group: int, num_blocks: int) -> bool:
        """Makes sure that the first `num_blocks` swap blocks of a group can be written; False if there is no room for them after all."""
        ...

    def read_block(self, group: int, block: int) -> bytes:
        """As `PagePools`; between steps."""
        ...

    def write_block(self, group: int, block: int, data: bytes | memoryview) -> bool:
        """As `PagePools`; between steps."""
        ...

    def submit(self, batch: Batch, sampling: SamplingPlan) -> StepHandle:
        """Starts a step: appends the batch's K/V to the pages and computes the logits of `logit_rows`. Raises EngineError."""
        ...


@dataclass(frozen=True)
class Tensor:
    """A tensor in a device's memory, without gaps; `memory` is what the device knows it by, on the host an array.

    An array's dtype stands for that of the tensor where numpy has none of its own: bfloat16 is uint16 there.
    """

    dtype: str
    shape: tuple[int, ...]
    address: int
    memory: Any


class PagePools(Protocol):
    """The memory of a K/V cache, by blocks.

    Attributes:
        tensors: the pools, by the names of the inputs that they are.
    """

    tensors: Mapping[str, Tensor]

    def copy_blocks(self, copies: Sequence[tuple[int, int, int]]) -> None:
        """Copies blocks: (group, from, to), in order, each in all pools of its group."""
        ...

    def read_block(self, group: int, block: int) -> bytes:
        """A block's part of every pool of its group, one after another."""
        ...

    def write_block(self, group: int, block: int, data: bytes | memoryview) -> bool:
        """Puts into a block what `read_block` gave; False, with nothing changed, if it has another size."""
        ...


class Device(Protocol):
    """Memory that kernels run in, and the ways into it and out of it.

    Attributes:
        shares_memory: whether that is the host's: `download` then is no copy, and shows what is written later.
    """

    shares_memory: bool

    def empty(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor with any content."""
        ...

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor of zeros, whose memory may be taken from the system only as it is written."""
        ...

    def head(self, tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> Tensor:
        """The beginning of a tensor's memory as another tensor."""
        ...

    def upload(self, array: Array, tensor: Tensor) -> None:
        """Writes an array of the tensor's shape and dtype to the tensor."""
        ...

    def download(self, tensor: Tensor) -> Array:
        """The tensor's content."""
        ...

    def page_pools(self, kv: KVSpec, num_blocks: Sequence[int], swap: SwapSpace) -> PagePools:
        """Pools of so many blocks in each group; the swap space's blocks have the ids that follow."""
        ...

    def synchronize(self) -> None:
        """Waits until all that was asked for is done."""
        ...

    def memory_budget(self) -> int:
        """Bytes that can be had now, for weights, K/V and all else."""
        ...

    def total_memory(self) -> int:
        """Bytes that the device has in all, others' too."""
        ...

    def largest_tensor(self) -> int:
        """Bytes that one tensor may have."""
        ...

    def map_weights(self, artifact: Artifact) -> Mapping[str, Tensor]:
        """The artifact's weights by name."""
        ...
